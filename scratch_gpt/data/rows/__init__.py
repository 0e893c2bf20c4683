"""Documents -> rows -> batches: windows, packing, conversations, preferences, labels."""
