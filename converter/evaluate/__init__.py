"""A checkpoint run in numpy, its weights read as they are needed."""
