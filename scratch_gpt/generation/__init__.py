"""Prompts -> text: sampling, KV cache, int8, the C step, speculative decoding."""
