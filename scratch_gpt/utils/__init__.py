"""Helpers that know nothing about GPTs: files, locks, HTML, plots, extras."""
