"""Run a recipe: set-up, training, resuming, results, seeds."""
