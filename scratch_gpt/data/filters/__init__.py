"""Find rows to remove or change: quality, duplicates, private data, poisoning."""
