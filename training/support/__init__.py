"""The shared code of the recipes: options, command line, runs, preparation, evaluation."""
