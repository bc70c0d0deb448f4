"""Who may ask, how often, and what may be said: keys, limits and a content policy. Works without a server."""
