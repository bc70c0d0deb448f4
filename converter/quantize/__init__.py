"""Weights to fewer bits: recipes, the search for scales, what helps before rounding, and the way to a file."""
