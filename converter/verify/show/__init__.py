"""What was found, in JSON, on a terminal and as HTML."""
