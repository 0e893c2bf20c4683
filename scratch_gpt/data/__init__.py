"""Turn documents into batches: sources, filters, rows, prepared data, manifest, splits."""
