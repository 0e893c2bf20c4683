"""Where documents come from: files, the Hub, streams, the documentation of Python."""
