"""Test the rows of a run: no prompt is in two splits, errors name the dataset, "seen" rows are training rows."""

import json

import pytest

from scratch_gpt.data.columns import CONVERSATIONS
from scratch_gpt.data.rows.conversations import read_conversations
from scratch_gpt.train.batches import epoch_order
from scratch_gpt_training import instruct
from scratch_gpt_training.support.run.data import add_seen, read_by_prompt


def read(run):
    return read_by_prompt(run, CONVERSATIONS, read_conversations, lambda messages: messages[0]["content"])


def test_no_prompt_is_in_two_splits_and_empty_rows_are_counted(tmp_path):
    rows = [{"instruction": f"Say {n % 20}.", "output": "" if n == 3 else f"It is {n}."} for n in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    run = instruct.InstructRun(dataset=str(tmp_path / "rows.json"), validation_fraction=0.2, test_fraction=0.2)
    splits, record, notices, empty = read(run)
    prompts = {name: {messages[0]["content"] for messages in part} for name, part in splits.items()}
    assert {*splits} == {"train", "validation", "test"} and sum(map(len, splits.values())) == 59
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) == 20
    assert (record["dataset"], notices, empty) == ("rows.json", [], [4])


def test_an_error_in_a_row_names_the_dataset(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"instruction": "Say it.", "output": 3}]))
    with pytest.raises(ValueError, match=r"rows\.json: Row 1: output must be text, not 3"):
        read(instruct.InstructRun(dataset=str(file)))


def test_seen_rows_are_the_first_of_the_first_epoch():
    rows = {"train": list(range(100)), "validation": list(range(7))}
    add_seen(rows, seed=3)
    assert [*rows["seen"]] == [*epoch_order(100, 3, 0)[:7]]
    rows = {"train": list(range(9))}
    add_seen(rows, seed=3)
    assert {*rows} == {"train"}
