"""Convert text to ids and back: train, load and extend tokenizers; chat templates."""
