"""The recipes and what they share."""
