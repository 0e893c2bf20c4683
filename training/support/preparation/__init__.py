"""Run the stages of prepare.py and write their outputs."""
