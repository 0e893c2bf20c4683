"""Read documents: local files, the Hub, streams, the documentation of Python."""
