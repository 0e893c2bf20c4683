"""Test sweeps: one run for each combination of values, a table, the best, and resuming."""

import json
from types import SimpleNamespace

import pytest
from bad_input import fails

from scratch_gpt_training import pretrain
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.combinations import combine
from scratch_gpt_training.support.run import output_dir, runner, sweep


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


def test_a_killed_sweep_of_two_fields_continues_with_the_unfinished_combinations(tmp_path, capsys, monkeypatch):
    (tmp_path / "story.txt").write_text(STORY)
    words = ["--dataset", str(tmp_path / "story.txt"), "--output-dir", str(tmp_path / "runs"), *SMALL]
    words += ["--max-steps", "2", "--max-bad-steps", "1", "--eval-batches", "1", "--warmup-steps", "0"]
    fields = "lr=1e-2,1e30 dropout=0,0.5"
    trained, run_task = [], sweep.run_task

    def kill_the_third(run, *arguments):
        trained.append((run.learning_rate, run.dropout))
        if len(trained) == 3:
            raise SystemExit(130)
        return run_task(run, *arguments)

    monkeypatch.setattr(sweep, "run_task", kill_the_third)
    with pytest.raises(SystemExit, match="130"):
        pretrain.main([*words, "--sweep", fields])
    assert trained == [(1e-2, 0.0), (1e-2, 0.5), (1e30, 0.0)]
    before = json.loads((tmp_path / "runs" / "sweep.json").read_text())["combinations"]
    assert [*before] == ["sweep-dropout-0-learning_rate-0.01", "sweep-dropout-0.5-learning_rate-0.01"]
    assert before["sweep-dropout-0.5-learning_rate-0.01"]["dropout"] == 0.5

    executed, execute = [], runner.execute
    monkeypatch.setattr(runner, "execute", lambda run, *rest: executed.append(run.output_dir) or execute(run, *rest))
    capsys.readouterr()
    pretrain.main(["--output-dir", str(tmp_path / "runs"), "--resume"])  # run.yaml has the sweep
    assert [folder.rpartition("/")[2] for folder in executed] == [
        "sweep-dropout-0-learning_rate-1e+30",
        "sweep-dropout-0.5-learning_rate-1e+30",
    ]
    lines = capsys.readouterr().out.splitlines()
    heading = next(
        n for n, line in enumerate(lines) if line.split() == "learning rate dropout validation loss diverged".split()
    )
    rows = [line.split() for line in lines[heading + 1 : heading + 5]]
    assert [row[:2] for row in rows] == [["0.01", "0"], ["0.01", "0.5"], ["1e+30", "0"], ["1e+30", "0.5"]]
    assert [row[3] for row in rows] == ["no", "no", "yes", "yes"]
    best = min(rows[:2], key=lambda row: float(row[2]))
    assert best[-1] == "best" and f"Best: --learning-rate 0.01 --dropout {best[1]}. Written: " in "\n".join(lines)

    executed.clear()
    pretrain.main(["--output-dir", str(tmp_path / "runs"), "--resume"])
    assert executed == []  # finished combinations and those that diverged are not repeated


def test_a_resumed_sweep_continues_and_updates_run_yaml(tmp_path, monkeypatch):
    def launch(rates: str):
        words = ["--output-dir", str(tmp_path), "--resume", "latest", "--learning-rates", rates]
        return command_line.parse(pretrain.PretrainRun, words)

    alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, free_memory=lambda: None)
    went_on = []
    monkeypatch.setattr(sweep, "run_task", lambda run, *_: went_on.append(run.learning_rate) or alone)
    monkeypatch.setattr(sweep, "result_of", lambda *_: {"loss": 4.0, "diverged": False})
    for name in ("open_run", "close_run"):
        monkeypatch.setattr(sweep, name, lambda *_: None)
    output_dir.write_run_yaml(launch("1e-3,1e30"), tmp_path, {"runs": ["rate-0.001", "rate-1e+30"]})
    found = {"0.001": {"loss": 5.0, "diverged": True}, "1e+30": {"loss": None, "diverged": True}}
    (tmp_path / "sweep.json").write_text(json.dumps({"rates": found}))
    run = launch("1e-3,1e30,1e-2")
    sweep.run_sweep(run, combine(run), None)
    assert went_on == [1e-3, 1e-2]
    text = (tmp_path / "run.yaml").read_text()
    assert "learning_rates: 1e-3,1e30,1e-2\n" in text and "# - rate-0.01\n" in text


def test_a_loss_that_is_not_finite_is_none_in_the_table(tmp_path):
    results = {"validation": {"loss": float("nan")}, "before/validation": {"loss": 5.0}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"results": results}))
    assert sweep.result_of(SimpleNamespace(output_dir=tmp_path), "loss") == {"loss": None, "diverged": True}


def test_vocabularies_are_compared_by_bits_per_byte_and_beta_by_accuracy(tmp_path):
    run = SimpleNamespace(output_dir="runs/x")
    learned = {"diverged": False}
    results = [({"vocab_size": 300}, {"loss": 2.0, "bits_per_byte": 3.0, **learned})]
    results += [({"vocab_size": 400}, {"loss": 2.5, "bits_per_byte": 2.9, **learned})]
    text = sweep.format_table(run, results)
    assert "validation bits per byte" in text and "Best: --vocab-size 400." in text
    results = [({"beta": 0.1}, {"loss": 0.6, "accuracy": 0.8, **learned})]
    results += [({"beta": 0.5}, {"loss": 0.5, "accuracy": 0.7, **learned})]
    assert "Best: --beta 0.1." in sweep.format_table(run, results)
    results = [({"max_length": 8}, {"loss": 0.6, **learned}), ({"max_length": 16}, {"loss": 0.5, **learned})]
    assert "Best: --max-length 16." in sweep.format_table(run, results)  # classification
    (tmp_path / "evaluation.json").write_text(
        json.dumps({"results": {"validation": {"loss": 1, "accuracy": 0.5}, "before/validation": {"loss": 2}}})
    )
    found = sweep.result_of(SimpleNamespace(output_dir=tmp_path), "accuracy")
    assert found == {"loss": 1, "accuracy": 0.5, "diverged": False}


def test_results_of_earlier_combinations_are_kept(tmp_path):
    run = SimpleNamespace(output_dir=tmp_path, resume="latest")
    loss = {"loss": 1.0, "diverged": False}
    table = {"rate-0.01": {"learning_rate": 0.01, **loss}, "rate-0.001": loss, "sweep-beta-1": {"beta": 1.0, **loss}}
    sweep.write_results(run, table)
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert [*content["rates"]] == ["0.001", "0.01"] and content["rates"]["0.01"] == loss
    assert sweep.read_results(run) == {"rate-0.01": loss, "rate-0.001": loss, "sweep-beta-1": {"beta": 1.0, **loss}}
