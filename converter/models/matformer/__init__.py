"""Smaller models inside a larger one: Google's fifteen slices of Gemma 3n E4B, and slices of one's own."""
