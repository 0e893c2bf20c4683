"""Test energy: a row for each launch, the sum and its method on the card, bad options refused at the start."""

import csv
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState, PartialState
from bad_input import fails

from scratch_gpt.hub.card_values import card_values
from scratch_gpt.runs.energy import ESTIMATED, READ, _append
from scratch_gpt.runs.record import read_record
from scratch_gpt_training import pretrain
from scratch_gpt_training.support import options as recipe


SMALL = ["--preset", "tiny", "--vocab-size", "300", "--config-overrides", "hidden_size=32,num_hidden_layers=1"]
SMALL += ["--max-length", "32", "--device", "cpu", "--eval-batches", "1"]


def run(*words) -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    pretrain.main([*map(str, words)])


def test_each_launch_is_a_row_and_the_card_reports_their_sum(tmp_path):
    pytest.importorskip("codecarbon")
    (tmp_path / "a.txt").write_text("The sun shines on the sea. " * 200)
    launch = ["--dataset", tmp_path / "a.txt", "--output-dir", tmp_path / "run", *SMALL, "--energy", "FRA"]
    run(*launch, "--max-steps", 1)
    run(*launch, "--max-steps", 2, "--resume", "latest")
    rows = [*csv.DictReader((tmp_path / "run" / "emissions.csv").open())]
    assert len(rows) == 2 and all(float(row["energy_consumed"]) > 0 and float(row["duration"]) > 0 for row in rows)
    record = read_record(tmp_path / "run")
    assert [row["run_id"] for row in record.emissions] == [row["run_id"] for row in rows]
    said = card_values(record, repo="ada/x", layout="gpt2")["energy"]
    assert "electricity of France" in said and any(how in said for how in (READ, ESTIMATED))
    assert f"{sum(float(row['energy_consumed']) for row in rows):.3g} kWh" in said


def test_a_launch_with_another_codecarbon_keeps_the_columns_of_the_file(tmp_path):
    file = tmp_path / "emissions.csv"
    for values in ({"run_id": "a", "gone": 1, "duration": 2}, {"new": 3, "duration": 4, "run_id": "b"}):
        _append(file, SimpleNamespace(_hardware=[], final_emissions_data=SimpleNamespace(values=values)))
    assert [*csv.DictReader(file.open())] == [
        {"run_id": "a", "gone": "1", "duration": "2", "cpu_power_is": READ},
        {"run_id": "b", "gone": "", "duration": "4", "cpu_power_is": READ},
    ]


def test_an_unknown_country_and_a_missing_extra_are_refused_at_once(tmp_path, monkeypatch, capsys):
    launch = ["--dataset", "nothing.txt", "--output-dir", tmp_path / "run", *SMALL]
    if recipe.find_spec("codecarbon"):
        fails([*launch, "--energy", "Mars"], "three letters", capsys)
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    fails([*launch, "--energy", "FRA"], r"scratch_gpt\[energy\]", capsys)
    assert not (tmp_path / "run").exists()
