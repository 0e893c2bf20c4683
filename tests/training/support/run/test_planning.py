"""Test plans as the recipes print them: a plan reads and writes nothing."""

import pytest
from bad_input import fails, snapshot
from tiny import tiny_gpt2
from tiny_run import run as tiny_training

from scratch_gpt.conversion.load import load_model
from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.train import machine_probe as probe
from scratch_gpt.train.costs import Rehearsal
from scratch_gpt_training import classify, instruct, prefer, pretrain
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.run import planning


STORY = "The old sailor walked to the shiny sea, and the sun shone on ninety quiet boats.\n" * 60
SMALL = ["--preset", "tiny", "--max-length", "32", "--device", "cpu", "--vocab-size", "300", "--batch-size", "2"]
SMALL += ["--config-overrides", "hidden_size=32,num_hidden_layers=2"]


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch):
    """Shorten the measurements of the probes."""
    monkeypatch.setattr(probe, "matmul_rate", lambda device, precision, budget=0: 1e11)
    monkeypatch.setattr(planning, "matmul_rate", lambda device, precision: 1e11)
    monkeypatch.setattr(planning, "bandwidth", lambda device: 1e10)
    times = probe.seconds_of
    monkeypatch.setattr(probe, "seconds_of", lambda work, device, budget=0: times(work, device, 0))


@pytest.fixture
def base(tmp_path):
    """Save the config of a model, without weights."""
    tiny_gpt2().config.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_a_plan_needs_no_data_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nowhere = ["--dataset", "nobody/nothing", "--output-dir", "run"]
    pretrain.main(
        [*SMALL, *nowhere, "--plan", "true", "--max-steps", "5", "--plan-devices", "8", "--plan-tflops", "3"]
    )
    said = capsys.readouterr().out
    assert (
        "a step" in said and "8 of 3 TFLOP/s" in said and "Hoffmann" in said and "this run                320" in said
    )
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("module", (classify, instruct, prefer))
def test_every_recipe_plans_from_only_a_models_config(module, base, capsys):
    module.main(["--model", base, "--dataset", "nobody/nothing", "--plan", "true", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "Model: 30," in said or "Model: 31," in said, said
    assert "--max-steps or --max-tokens" in said


def test_the_plan_of_gpt2_describes_the_trained_model(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    words = ["--model", str(tmp_path), "--dataset", "nobody/nothing", "--dropout", "0.0"]
    run = command_line.parse(pretrain.PretrainRun, words)
    planned, _, _ = planning.read_config(run, None)
    rates = dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), 0.0)
    trained = load_model(str(tmp_path), **rates).config
    for name in ("hidden_act", *rates):
        assert getattr(planned, name) == getattr(trained, name), name


def test_a_plan_has_the_counts_of_the_run_that_follows(tmp_path, capsys):
    (tmp_path / "story.txt").write_text(STORY)
    words = ["--dataset", str(tmp_path / "story.txt"), "--output-dir", str(tmp_path / "run"), *SMALL]
    words += ["--max-steps", "2", "--log-every", "1", "--accumulation-steps", "2", "--drop-tail", "true"]
    plan = planning.make_plan(command_line.parse(pretrain.PretrainRun, words))
    pretrain.main(words)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert plan.tokens == lines[-1]["tokens"] == 2 * plan.step_tokens
    facts = (tmp_path / "run" / "run.yaml").read_text()
    assert f"# parameters: {plan.parameters}\n" in facts
    for line in lines:  # the option above sets the peak to 1e11
        flops = line["tokens_per_second"] * plan.step_flops / plan.step_tokens
        assert line["mfu"] == pytest.approx(flops / 1e11, rel=1e-6)
        assert 0 <= line["data_wait"] < 1


def test_time_grows_with_the_model_the_batch_and_nothing_else(monkeypatch):
    def rehearsed(model, loss, rows, length, precision, optimizer):
        return Rehearsal(rows, length, 1.0, 0.5, 0.0, 1.0 if optimizer == "muon" else 0.0)

    monkeypatch.setattr(planning, "rehearse", rehearsed)

    def seconds(*words):
        return planning.make_plan(command_line.parse(pretrain.PretrainRun, [*SMALL, *words])).step_seconds

    few = seconds()
    assert seconds("--accumulation-steps", "8") > 3 * few
    assert seconds("--config-overrides", "hidden_size=32,num_hidden_layers=40") > 3 * few
    assert seconds("--optimizer", "muon") == few + 2
    assert seconds("--learning-rate", "0.1", "--max-steps", "7") == few


def test_metrics_have_no_mfu_if_the_peak_is_unknown(tmp_path):
    lines = tiny_training(tmp_path)[2]
    assert lines and all("mfu" not in line and "data_wait" in line for line in lines)


REFUSED = {
    "--plan-tflops 3": "only work with --plan true",
    "--plan true --plan-tflops 0": "--plan-tflops must be above 0",
    "--plan true --plan-devices 0": "--plan-devices must be at least 1",
    "--plan true --tokenizer nobody/nothing": "nobody/nothing",
    "--plan true --config-overrides hidden_size=33": "not a multiple of num_attention_heads",
    "--learning-rates 1e-3": "two or more different positive numbers",
    "--learning-rates 1e-3,1e-3": "two or more different",
    "--learning-rates 1e-3,-1": "two or more different positive numbers",
    "--learning-rates 1e-3,word": "two or more different positive numbers",
    "--learning-rates 1e-3,1e-2 --validation-fraction 0": "compared by validation loss",
    "--learning-rates 1e-3,1e-2 --resume training": "a checkpoint of one combination",
}


@pytest.mark.parametrize("words", REFUSED)
def test_impossible_options_are_refused_in_one_line(words, tmp_path, capsys):
    fails([*SMALL, "--output-dir", tmp_path / "run", *words.split()], REFUSED[words], capsys)


def test_the_plan_of_an_adapter_is_refused(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    fails(["--model", tmp_path, "--plan", "true"], "is an adapter", capsys)
