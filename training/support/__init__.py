"""What the recipes share: options, command line, runs, preparation, evaluation."""
