"""Publish a run folder as a repository on the Hub, with its card."""
