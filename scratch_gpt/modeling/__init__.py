"""The model. Its files are copied flat into every checkpoint."""
