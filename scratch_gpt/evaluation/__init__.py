"""Evaluate models: losses, benchmarks, answers, classifiers, preferences, judges."""
