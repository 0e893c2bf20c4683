"""Room 1: what a GPT is. These files are copied flat into every checkpoint; nothing here imports another room."""
