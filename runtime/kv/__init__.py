"""Keys and values of many token sequences: who has which slot, what is kept, and who runs next."""
