"""What a conversion lost, and whether that is still usable."""
