"""Analyze a model beyond its scores: drift, triggers, memorization, inspection."""
