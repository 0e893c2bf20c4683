"""The recipes and their shared code."""
