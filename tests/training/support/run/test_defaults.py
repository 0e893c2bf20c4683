"""Test the default learning rate and epochs: GPT-2's rate at its width; explicit and recorded values are kept."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny import tiny_gpt2
from tiny_run import run_recipe

from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt.train.settings import TrainingSettings
from scratch_gpt_training import classify, pretrain
from scratch_gpt_training.support.run import seeds, setup
from scratch_gpt_training.support.run.defaults import (
    Rate,
    default_rate,
    describe_rate,
    resolve_epochs,
    resolve_rate,
)
from scratch_gpt_training.support.run.description import describe_run


KINDS = ("full", "last-block", "last-2-blocks", "head", "lora")
AT_GPT2 = {"pretrain": 5e-5, "classify": 5e-5, "instruct": 5e-5, "prefer": 5e-6}


@pytest.mark.parametrize("task", AT_GPT2)
@pytest.mark.parametrize("tune", KINDS)
def test_gpt2_has_its_own_rate_and_other_widths_a_multiple(task, tune):
    rate = AT_GPT2[task] * (10 if tune == "lora" else 1)
    assert default_rate(task, tune, 768, from_scratch=False).value == pytest.approx(rate)
    narrow = 7.35 if tune == "lora" else 14.7
    middle = 2.16 if tune == "lora" else 6
    for width, factor in ((1536, 0.5), (1024, 0.75), (384, middle), (128, narrow), (96, narrow)):
        assert default_rate(task, tune, width, from_scratch=False).value == pytest.approx(factor * rate, rel=6e-3)


def test_the_rate_falls_with_the_width():
    rates = [default_rate("classify", "full", width, from_scratch=False).value for width in range(128, 1700, 64)]
    assert rates == sorted(rates, reverse=True) and len({*rates}) == len(rates)


def test_a_new_model_has_the_same_rate_at_every_width():
    assert {default_rate("pretrain", "full", width, from_scratch=True).value for width in (32, 128, 768)} == {1e-3}


def test_the_line_that_a_run_prints():
    line = describe_rate(default_rate("instruct", "full", 128, from_scratch=False))
    assert line == "Learning rate 7.35e-4: 5e-5 at GPT-2's width of 768, adapted to 128."
    line = describe_rate(default_rate("instruct", "lora", 768, from_scratch=False))
    assert line == "Learning rate 5e-4: the default at GPT-2's width of 768."
    assert describe_rate(Rate(1e-3, "as given")) == "Learning rate 1e-3: as given."


def test_an_explicit_rate_has_priority_and_a_resumed_run_keeps_its_own():
    plain, explicit = pretrain.PretrainRun(model="base"), pretrain.PretrainRun(model="base", learning_rate=0.01)
    older = {"config": {"learning_rate": 5e-5}}
    assert resolve_rate(plain, "pretrain", 128, None).value == 7.35e-4
    assert resolve_rate(explicit, "pretrain", 128, None) == Rate(0.01, "as given")
    assert resolve_rate(plain, "pretrain", 128, older) == Rate(5e-5, "that of the checkpoint")
    assert resolve_rate(explicit, "pretrain", 128, older).value == 0.01  # refused later, as a change
    zero = pretrain.PretrainRun(learning_rate=0.0)
    assert resolve_rate(zero, "pretrain", 128, older).value == 0.0


def test_seeds_that_are_not_begun_get_the_rate_of_the_others():
    runs = [pretrain.PretrainRun(seed=seed) for seed in (0, 1)]
    begun = SimpleNamespace(saved={"record": {"config": {"learning_rate": 5e-5, "epochs": None}}})
    new = SimpleNamespace(saved=None)
    kept = seeds.keep_defaults(runs, [begun, new])
    assert [(run.learning_rate, run.epochs) for run in kept] == [(5e-5, 3), (5e-5, 3)]
    limited = [pretrain.PretrainRun(seed=seed, max_steps=9) for seed in (0, 1)]
    assert [run.epochs for run in seeds.keep_defaults(limited, [begun, new])] == [None, None]
    assert seeds.keep_defaults(runs, [new, new]) == runs


def test_small_data_sets_get_more_epochs_in_some_recipes():
    run = classify.ClassifyRun()
    assert [resolve_epochs(run, rows, 8, None) for rows in (800, 2000, 8000)] == [10, 4, 3]
    assert resolve_epochs(pretrain.PretrainRun(), 800, 8, None) == 3
    for limit in ({"epochs": 1.5}, {"max_steps": 4}, {"max_tokens": 9}):
        assert resolve_epochs(replace(run, **limit), 800, 8, None) == limit.get("epochs")
    assert resolve_epochs(pretrain.PretrainRun(streaming=True, max_steps=5), None, 8, None) is None


def test_the_run_says_why_it_has_more_epochs():
    task = SimpleNamespace(model=tiny_gpt2(vocab_size=280), tokens_per_row=8.0, description=[])
    accelerator = SimpleNamespace(num_processes=1, mixed_precision="no", device=torch.device("cpu"))
    settings = TrainingSettings(batch_size=8, epochs=10)
    text = describe_run(classify.ClassifyRun(), task, settings, 100, accelerator)
    assert text.endswith("\nEpochs: 10, because 3 have fewer than 1,000 steps.")
    assert "Epochs" not in describe_run(classify.ClassifyRun(epochs=10), task, settings, 100, accelerator)
    assert "Epochs" not in describe_run(pretrain.PretrainRun(), task, replace(settings, epochs=3), 100, accelerator)


def test_a_resumed_run_keeps_its_epochs():
    run = classify.ClassifyRun()
    record = {"config": {"epochs": 7}}
    assert resolve_epochs(run, 800, 8, record) == 7
    assert resolve_epochs(replace(run, epochs=2), 800, 8, record) == 2
    record["config"]["epochs"] = None  # before small data sets got more
    assert resolve_epochs(run, 800, 8, record) == 3


def test_a_run_records_its_rate_and_an_older_one_resumes_at_its_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "story.txt").write_text("The old sailor walked to the shiny sea.\n" * 60)
    tokenizer = train_tokenizer(["The old sailor walked to the shiny sea."] * 9, vocab_size=280)
    tiny_gpt2(vocab_size=280).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    words = ["--model", tmp_path / "base", "--dataset", tmp_path / "story.txt", "--output-dir", tmp_path / "run"]
    words += [
        "--device",
        "cpu",
        "--log-every",
        "1",
        "--max-length",
        "8",
        "--validation-fraction",
        "0",
        "--checkpoint-every",
        "1",
    ]
    run_recipe(pretrain, *words, "--max-steps", "2")
    assert "Learning rate 7.35e-4: 5e-5 at GPT-2's width of 768, adapted to 32." in capsys.readouterr().out
    record = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert record["learning_rate"] == 7.35e-4

    # An older version resumes: run.yaml has no rate, and the checkpoint has 5e-5.
    file = tmp_path / "run" / "run.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.000735", "learning_rate: null", 1))
    read = setup.read_state

    def read_older(path):
        state = read(path)
        assert state["record"]["config"]["learning_rate"] == 7.35e-4
        state["record"]["config"]["learning_rate"] = 5e-5
        return state

    monkeypatch.setattr(setup, "read_state", read_older)
    run_recipe(pretrain, *words, "--max-steps", "3", "--resume", "latest")
    assert "Learning rate 5e-5: that of the checkpoint." in capsys.readouterr().out
    assert yaml.safe_load(file.read_text())["learning_rate"] == 5e-5
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert rates[-1] <= 5e-5 < rates[0]
