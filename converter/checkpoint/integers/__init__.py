"""Matrices that a checkpoint stores as integers with scales."""
