"""Scores: losses, benchmarks, answers, classifiers, preferences, judges."""
