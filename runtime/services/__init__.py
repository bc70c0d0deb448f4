"""The services that Google's documents sketch around Gemma, each with its place here: SERVICES.md has the table."""
