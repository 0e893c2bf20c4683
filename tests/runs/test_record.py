"""Test the record of a run: its base, its results, and folders that are not runs."""

import json

import pytest
from card_run import COMMIT, write_run

from scratch_gpt.runs.record import base_model, read_record, results


def test_an_adapter_names_its_hub_base_and_a_local_base_only_if_the_weights_match(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nested" / "model").mkdir(parents=True)
    hub = {"repo": "ada/base", "commit": COMMIT, "layout": "gpt2", "fingerprint": "ab"}
    (tmp_path / "nested" / "hub.json").write_text(json.dumps(hub))
    for name, base, expected in (
        ("openai-community/gpt2", None, ("openai-community/gpt2", None)),
        ("elsewhere/model", None, None),
        ("nested/model", None, ("ada/base", COMMIT)),
        ("nested/model", {"folder": None, "fingerprint": "x"}, ("nested/model", None)),
        ("nested/model", {"folder": "nested/model", "fingerprint": "ab"}, ("ada/base", COMMIT)),
        ("nested/model", {"folder": "nested/model", "fingerprint": "cd"}, None),
        ("gone/gpt2", {"folder": "gone/gpt2", "fingerprint": "ab"}, None),
    ):
        record = read_record(write_run(tmp_path / f"{name}-{base}".replace("/", "-"), model=name))
        record = record._replace(facts={**record.facts, **({"base": base} if base else {})})
        assert base_model(record) == expected, (name, base)


def test_several_seeds_give_mean_results_and_the_first_seeds_details(tmp_path):
    run = write_run(tmp_path / "run", "classify")
    write_run(run / "seed-0", "classify")
    (run / "run.yaml").write_text("seed: 0\nseeds: 2\n\n# runs:\n# - seed-0\n# - seed-1\n")
    for name in ("manifest.json", "metrics.jsonl"):
        (run / name).unlink()
    record = read_record(run)
    assert record.folder == run / "seed-0" and record.facts["steps"] == 20 and record.metrics
    assert [str(result) for result in results(record)] == ["0.91235 \u00b1 0.012346", "0.9"]


def test_a_folder_that_is_not_a_run_has_no_card(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        read_record(tmp_path)
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="give its parent folder"):
        read_record(run / "model")
    (run / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        read_record(run)
    (run / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match="no model yet"):
        read_record(run)
    (run / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match="the runs of a sweep. Give the folder of one of them"):
        read_record(run)
