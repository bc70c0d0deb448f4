"""What is asked for, and what follows from it before a weight is read: sizes, memory, what would fit."""
