"""Test the comparison of learning rates."""

import json
from types import SimpleNamespace

import pytest
from bad_input import fails

from scratch_gpt_training import pretrain
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.run import learning_rates as sweep
from scratch_gpt_training.support.run import output_dir, runner


STORY = "The old sailor walked to the shiny sea, and the sun shone on ninety quiet boats.\n" * 60
SMALL = ["--preset", "tiny", "--max-length", "32", "--device", "cpu", "--vocab-size", "300", "--batch-size", "2"]
SMALL += ["--config-overrides", "hidden_size=32,num_hidden_layers=2"]


def test_rates_are_not_compared_without_validation_data():
    build = sweep.validated(lambda run: SimpleNamespace(rows=dict.fromkeys(run.splits)))
    assert build(SimpleNamespace(splits=("train", "validation"))).rows
    with pytest.raises(ValueError, match="compared by validation loss, and data/mixed has no validation split"):
        build(SimpleNamespace(dataset="data/mixed", splits=("train", "test")))


def test_a_sweep_names_the_best_rate_reports_divergence_and_can_be_resumed(tmp_path, capsys, monkeypatch):
    (tmp_path / "story.txt").write_text(STORY)
    words = ["--dataset", str(tmp_path / "story.txt"), "--output-dir", str(tmp_path / "runs"), *SMALL]
    words += ["--max-steps", "3", "--learning-rates", "1e-2,1e30", "--max-bad-steps", "1", "--eval-batches", "1"]
    words += ["--eval-every", "3", "--validation-fraction", "0.05"]
    pretrain.main(words)
    said = capsys.readouterr().out
    assert "Best: --learning-rate 0.01." in said
    rates = json.loads((tmp_path / "runs" / "sweep.json").read_text())["rates"]
    assert [*rates] == ["0.01", "1e+30"] and rates["0.01"]["loss"] < 5.8 and not rates["0.01"]["diverged"]
    assert rates["1e+30"] == {"loss": None, "diverged": True}
    assert (tmp_path / "runs" / "rate-0.01" / "model").is_dir()

    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("nothing is left to do"))
    pretrain.main([*words, "--resume", "latest"])
    assert "Best: --learning-rate 0.01." in capsys.readouterr().out
    fails(words, "--resume latest to continue it", capsys)


def test_a_resumed_sweep_continues_and_updates_run_yaml(tmp_path, monkeypatch):
    def launch(rates: str):
        words = ["--output-dir", str(tmp_path), "--resume", "latest", "--learning-rates", rates]
        return command_line.parse(pretrain.PretrainRun, words)

    alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, free_memory=lambda: None)
    went_on = []
    monkeypatch.setattr(sweep, "run_task", lambda run, *_: went_on.append(run.learning_rate) or alone)
    monkeypatch.setattr(sweep, "result_of", lambda run: {"loss": 4.0, "diverged": False})
    for name in ("open_run", "close_run"):
        monkeypatch.setattr(sweep, name, lambda *_: None)
    output_dir.write_run_yaml(launch("1e-3,1e30"), tmp_path, {"runs": ["rate-0.001", "rate-1e+30"]})
    found = {"0.001": {"loss": 5.0, "diverged": True}, "1e+30": {"loss": None, "diverged": True}}
    (tmp_path / "sweep.json").write_text(json.dumps({"rates": found}))
    sweep.run_rates(launch("1e-3,1e30,1e-2"), None)
    assert went_on == [1e-3, 1e-2]
    text = (tmp_path / "run.yaml").read_text()
    assert "learning_rates: 1e-3,1e30,1e-2\n" in text and "# - rate-0.01\n" in text


def test_a_loss_that_is_not_finite_is_none_in_the_table(tmp_path):
    results = {"validation": {"loss": float("nan")}, "before/validation": {"loss": 5.0}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"results": results}))
    assert sweep.result_of(SimpleNamespace(output_dir=tmp_path)) == {"loss": None, "diverged": True}
