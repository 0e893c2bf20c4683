"""Helpers for the tests of publishing: recipes, layouts and refusals."""

import json
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from bad_input import fails

from scratch_gpt_training import publish as publish_recipe


STORY = "The old sailor walked to the shiny sea, and the sun shone on ninety quiet boats.\n" * 60
SMALL = ["--max-length", "128", "--device", "cpu", "--max-steps", "2", "--eval-batches", "1", "--log-every", "1"]
NEW = ["--preset", "tiny", "--vocab-size", "300", "--config-overrides", "hidden_size=32,num_hidden_layers=2"]
LORA = ["--tune", "lora", "--lora-rank", "2"]


def recipe(module, *words) -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    module.main([str(word) for word in words])


def layout_at(hub, repo: str, revision: str = "main") -> str:
    there = hub.files(repo, revision)
    has_code = any(name.endswith(".py") for name in there)
    if "adapter_config.json" in there:
        assert not has_code and "config.json" not in there
        return "adapter"
    layout = json.loads(there["config.json"])["model_type"]
    assert has_code == (layout == "scratch_gpt")
    return layout


def change_config(run: Path, **fields) -> None:
    file = run / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def refused(message, *words, capsys):
    fails([*words], message, capsys, main=publish_recipe.main)
