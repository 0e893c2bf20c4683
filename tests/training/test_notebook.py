"""Test the notebook: it runs from start to end, and is stored without outputs."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from places import REPO
from transformers import AutoModelForCausalLM


FILE = REPO / "training" / "notebooks" / "text_to_hub.ipynb"
NOTEBOOK = json.loads(FILE.read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TEXT = "The sun shines on the sea, and every effort moves you on. Return the boat to the harbour.\n" * 40


def test_the_notebook_is_valid_and_has_no_outputs():
    """Check nbformat 4.5: kinds of cells, unique ids, lists of lines; formatted as by Jupyter."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert set(NOTEBOOK) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert FILE.read_text() == json.dumps(NOTEBOOK, indent=1, sort_keys=True) + "\n"
    names = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    for cell in NOTEBOOK["cells"]:
        own = {"code": {"execution_count": None, "outputs": []}, "markdown": {}}[cell["cell_type"]]
        assert {**cell, **own} == cell and set(cell) == {"cell_type", "id", "metadata", "source", *own}
        assert cell["metadata"] == {} and all(type(line) is str for line in cell["source"])
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and not cell["source"][-1].endswith("\n")
    assert len(CODE) == 10


def test_the_notebook_runs_from_text_to_publication(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for n in range(4):
        (tmp_path / "notes" / f"{n}.txt").write_text(f"{n} {TEXT}")
    names: dict = {}
    for n, code in enumerate(CODE):
        exec(compile(re.sub(r"^( *)%.*", r"\1pass", code, flags=re.MULTILINE), f"cell {n + 1}", "exec"), names)
        if n == 0:
            names |= {"DATASET": "notes", "VOCAB_SIZE": 300, "LENGTH": 32, "STEPS": 40}
    said = capsys.readouterr().out
    losses = [
        line["eval_loss"] for line in names["read_metrics"](Path("runs/notebook/metrics.jsonl")) if "eval_loss" in line
    ]
    assert losses[-1] < 0.7 * losses[0]
    before, after = re.search(r"loss on loud text: ([\d.]+) before, ([\d.]+) now", said).groups()
    assert float(after) < float(before)
    model = AutoModelForCausalLM.from_pretrained("runs/notebook-loud/model")
    AutoPeftModelForCausalLM.from_pretrained("runs/notebook-loud/adapter", trust_remote_code=True)
    assert model.num_parameters() == names["model"].num_parameters()
    card = ModelCard((tmp_path / "runs/notebook/published/README.md").read_text())
    assert card.data.eval_results[0].metric_value == pytest.approx(losses[-1], abs=0.1)
    assert "## Training data" in card.text and card.text in said
