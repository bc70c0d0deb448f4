"""Token sequences over a KV cache."""
