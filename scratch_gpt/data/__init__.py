"""Documents -> batches: sources, filters, rows, prepared data, manifest, splits."""
