"""Tokens and text: tokenizer, template, and the choice of the next token."""
