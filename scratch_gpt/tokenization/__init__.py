"""Text <-> ids: train, load and extend tokenizers; chat templates."""
