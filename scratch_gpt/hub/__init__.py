"""A run folder -> a repository on the Hub, with its card."""
