"""Find rows to remove or to change: quality, duplicates, private data, poisoning."""
