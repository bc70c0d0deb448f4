"""Memory of processes: read, watched, limited, given back."""
