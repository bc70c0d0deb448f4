"""What the server shows beside the API: the page at `/`, and figures."""
