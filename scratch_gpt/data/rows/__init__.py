"""Make rows and batches of documents: windows, packing, conversations, preferences, labels."""
