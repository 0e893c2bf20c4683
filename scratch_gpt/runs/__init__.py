"""The folder of a run: its files, their records, energy."""
