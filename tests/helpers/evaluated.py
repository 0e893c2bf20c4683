"""Helpers for the tests of the evaluation recipe: folders with models, rows as JSON, and a call of the recipe."""

import json
from pathlib import Path

from scratch_gpt_training import evaluate


def save_parts(folder: Path, *parts) -> None:
    """Save a model, its tokenizer, or both."""
    for part in parts:
        part.save_pretrained(folder)


def json_lines(rows) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def evaluate_into(folder: Path, *words) -> dict:
    """Run the recipe on the CPU; return the content of the evaluation.json that it writes."""
    evaluate.main([*map(str, words), "--output-dir", str(folder), "--device", "cpu"])
    return json.loads((folder / "evaluation.json").read_text())
