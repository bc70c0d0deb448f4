"""Text to tokens, and messages to text, as a checkpoint has them."""
