"""Room 3: text to batches. Functions of rows stay pure; `datasets` opens, maps and caches."""
