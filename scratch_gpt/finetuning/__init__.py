"""Which parameters are trained: freezing, LoRA, 4 and 8 bits, adapter files."""
