"""Choose the parameters to train: freezing, LoRA, 4 and 8 bits, adapter files."""
