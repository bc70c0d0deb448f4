"""What is read: safetensors, GGUF, adapters, the hub."""
