"""General helpers, independent of GPTs: files, locks, HTML, plots, extras."""
