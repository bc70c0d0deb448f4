"""Hugging Face directories with packed integers, for vLLM, SGLang and transformers."""
