"""The folder of a run: its files, what they record, energy."""
