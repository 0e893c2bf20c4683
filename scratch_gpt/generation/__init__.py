"""Generate text: sampling, KV cache, int8, the step in C, speculative decoding."""
