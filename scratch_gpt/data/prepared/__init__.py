"""Prepared data: filters in order, mixtures, files on disk, the report."""
