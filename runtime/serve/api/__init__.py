"""What requests and replies look like: one description, for the checks and for the OpenAPI document."""
