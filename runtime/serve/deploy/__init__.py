"""How a server is installed: a systemd unit, a container, and what they are told by it."""
