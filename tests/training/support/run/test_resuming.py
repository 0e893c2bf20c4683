"""Test resuming: an explicit default is not a change."""

import hashlib
import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from scratch_gpt_training import prepare, pretrain
from scratch_gpt_training.support.preparation import stages
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


def test_a_newer_option_at_its_default_is_not_a_change():
    accelerator = SimpleNamespace(device=SimpleNamespace(type="cpu"), mixed_precision="no", num_processes=1)
    now = resuming.make_record(pretrain.PretrainRun(), {}, {}, accelerator)
    older = {name: value for name, value in now["config"].items() if name not in ("pre_tokenizer", "language")}
    saved = {**now, "config": older}
    assert resuming.check_record(saved, now, allow_changed=False, keeps_batch=True) == []
    changed = {**now, "config": {**now["config"], "pre_tokenizer": "qwen35"}}
    (line,) = resuming.check_record(saved, changed, allow_changed=False, keeps_batch=True)
    assert line == "Changed: pre_tokenizer (None -> qwen35)."  # the fingerprint of the tokenizer decides


def test_an_older_plan_without_newer_options_is_still_valid():
    run = prepare.PrepareRun()
    for change in ({"pre_tokenizer": "qwen35"}, {"strip": "gutenberg"}):
        assert stages.hash_plan(run, []) != stages.hash_plan(replace(run, **change), [])
    assert stages.hash_plan(run, []) == stages.hash_plan(replace(run, encoder="tokenizers"), [])
    this_call = ("output_dir", "overwrite", "write_removed", "report", "hang_timeout")
    this_call += ("pre_tokenizer", "strip", "encoder")
    older = {name: value for name, value in asdict(run).items() if name not in this_call}
    content = json.dumps([stages.PARTS_FORMAT, older, []], sort_keys=True)
    assert stages.hash_plan(run, []) == hashlib.sha256(content.encode()).hexdigest()


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
