"""Small models that guess how a larger one goes on, from its hidden state and its keys and values."""
