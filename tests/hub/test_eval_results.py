"""Test results of public tasks: in the Hub's own format, and in the card's metadata with the task's dataset."""

import json

import pytest
import yaml
from card_run import card_of, write_run
from huggingface_hub import parse_eval_result_entries

from scratch_gpt.hub.eval_results import eval_results
from scratch_gpt.hub.staging import is_allowed
from scratch_gpt.runs.folder import EVAL_RESULTS
from scratch_gpt.runs.record import at_step, read_record


ARC = {"id": "allenai/ai2_arc", "config": "ARC-Easy", "split": "test"}
BLIMP = {"id": "nyu-mll/blimp", "config": None, "split": "train"}
SPREAD = {"mean": 0.4123456, "std": 0.0123456, "n": 3}


def measured(tmp_path, **protocols):
    """Write a run with results of two tasks and a text; `protocols` replace parts."""
    folder = write_run(tmp_path / "run")
    content = json.loads((folder / "evaluation.json").read_text())
    content["results"] |= {
        "arc_easy": {"acc": SPREAD, "acc_norm": {**SPREAD, "mean": 0.39}},
        "blimp": {"acc": 0.61},
        "heldout": {"bits_per_byte": 1.25},
    }
    content["protocol"] |= {
        "arc_easy": {"kind": "lm_eval task", "task": "arc_easy", "few_shot": 0, "rows": 2376, "dataset": ARC},
        "blimp": {"kind": "lm_eval task", "task": "blimp", "few_shot": 0, "rows": 67000, "dataset": BLIMP},
        "heldout": {"kind": "text", "source": {"dataset": "heldout.txt"}},
        **protocols,
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


def test_results_of_tasks_are_read_by_the_hub(tmp_path):
    record = read_record(measured(tmp_path))
    arc, blimp = parse_eval_result_entries(yaml.safe_load(eval_results(record)))
    assert (arc.dataset_id, arc.task_id, arc.value) == ("allenai/ai2_arc", "ARC-Easy", 0.41235)
    assert arc.notes == (
        "accuracy of lm_eval's arc_easy, 0-shot, 2376 rows; mean of 3 seeds, standard deviation 0.012346"
    )
    assert (blimp.dataset_id, blimp.task_id, blimp.value) == ("nyu-mll/blimp", "default", 0.61)
    assert "seeds" not in blimp.notes
    assert is_allowed(EVAL_RESULTS) and EVAL_RESULTS.startswith(".eval_results/") and EVAL_RESULTS.endswith(".yaml")


def test_the_cards_metadata_name_the_dataset_of_each_result(tmp_path):
    card = card_of(measured(tmp_path))
    front = yaml.safe_load(card.split("---\n")[1])
    results = {result["dataset"]["name"]: result for result in front["model-index"][0]["results"]}
    assert results["arc_easy"]["dataset"] == {
        "name": "arc_easy",
        "type": "allenai/ai2_arc",
        "config": "ARC-Easy",
        "split": "test",
    }
    assert results["arc_easy"]["metrics"][0] == {"type": "accuracy", "value": "0.41235 \u00b1 0.012346", "name": "acc"}
    assert results["heldout"]["dataset"] == {"name": "heldout", "type": "heldout.txt"}
    assert results["notes"]["dataset"] == {"name": "notes", "type": "notes", "split": "test"}  # of training
    assert "accuracy" in front["metrics"]
    assert "| arc_easy | acc | " in card and "Mean \u00b1 sample standard deviation of 3 seeds" in card


@pytest.mark.parametrize("protocol", (None, "x", {"dataset": "x"}, {"dataset": {}}, {"dataset": {"id": "a b"}}))
def test_a_damaged_protocol_has_no_entry(protocol, tmp_path):
    record = read_record(measured(tmp_path, arc_easy=protocol, blimp=protocol))
    assert eval_results(record) is None
    assert "arc_easy" in card_of(tmp_path / "run")


def test_a_run_without_tasks_and_a_checkpoint_have_no_file(tmp_path):
    assert eval_results(read_record(write_run(tmp_path / "plain"))) is None
    assert eval_results(at_step(read_record(measured(tmp_path)), 20)) is None
