"""LiteRT on the sections of a bundle."""
