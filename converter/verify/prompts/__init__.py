"""From conversations to tokens: as transformers does it, and as the bundle does."""
