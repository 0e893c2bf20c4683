"""Test resuming: an explicit default is not a change."""

import re
from types import SimpleNamespace

import pytest

from scratch_gpt_training import prepare, pretrain
from scratch_gpt_training.support.run import resuming


def test_an_explicit_default_size_is_not_a_change(tmp_path, capsys):
    accelerator = SimpleNamespace(device=SimpleNamespace(type="cpu"), mixed_precision="no", num_processes=1)
    records = [
        resuming.make_record(pretrain.PretrainRun(vocab_size=size), {}, {}, accelerator) for size in (None, 4096, 300)
    ]
    assert records[0] == records[1] != records[2]
    (tmp_path / "a.txt").write_text("The sun shines on the sea.\n" * 60)
    words = ["--dataset", str(tmp_path / "a.txt"), "--max-length", "16", "--output-dir", str(tmp_path / "p")]
    prepare.main(words)
    assert re.search(r"Vocabulary: 2\d\d tokens instead of 4,096: the text yields no more", capsys.readouterr().out)
    prepare.main([*words, "--vocab-size", "4096"])
    assert "is already prepared" in capsys.readouterr().out


def test_processes_of_different_data_precision_or_options_are_refused():
    record = {
        "config": {"seed": 0, "dataset": "a.txt", "compile": False},
        "model": {"hidden_size": 8},
        "data": {"train": {"sha256": "1"}},
        "environment": {"precision": "no", "threads": 1},
        "resume": {"step": 2},
    }
    alike = {**record, "config": {**record["config"], "dataset": "/mnt/a.txt"}, "environment": {"precision": "no"}}
    resuming.check_same_run([record, alike])
    for part, change in (
        *(("config", {"seed": 1}), ("model", {"hidden_size": 9}), ("data", {"train": {"sha256": "2"}})),
        *(("environment", {"precision": "bf16"}), ("resume", {"step": None})),
    ):
        with pytest.raises(ValueError, match=f"differ in .*{next(iter(change))}"):
            resuming.check_same_run([record, record, {**record, part: {**record[part], **change}}])
