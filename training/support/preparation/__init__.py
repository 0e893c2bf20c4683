"""The stages of prepare.py and what they write."""
