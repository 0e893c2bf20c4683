"""Plans, rates and utilisation as the recipes print and write them: nothing is read or written by a plan."""

import json
from types import SimpleNamespace

import pytest
import torch
from bad_input import fails, snapshot
from tiny import some_ids, tiny_gpt2, tiny_model
from tiny_run import run as tiny_training
from torch.utils.flop_counter import FlopCounterMode

from scratch_gpt.conversion.load import load_model
from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.train import machine_probe as probe
from scratch_gpt.train.costs import Rehearsal
from scratch_gpt.train.machine_probe import device_peak, known_peak, seconds_of
from scratch_gpt_training import classify, instruct, prefer, pretrain
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.run import learning_rates as sweep
from scratch_gpt_training.support.run import output_dir, planning, runner


STORY = "The old sailor walked to the shiny sea, and the sun shone on ninety quiet boats.\n" * 60
SMALL = ["--preset", "tiny", "--max-length", "32", "--device", "cpu", "--vocab-size", "300", "--batch-size", "2"]
SMALL += ["--config-overrides", "hidden_size=32,num_hidden_layers=2"]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    """The probes measure, but for a moment only."""
    monkeypatch.setattr(probe, "matmul_rate", lambda device, precision, budget=0: 1e11)
    monkeypatch.setattr(planning, "matmul_rate", lambda device, precision: 1e11)
    monkeypatch.setattr(planning, "bandwidth", lambda device: 1e10)
    times = probe.seconds_of
    monkeypatch.setattr(probe, "seconds_of", lambda work, device, budget=0: times(work, device, 0))


@pytest.fixture
def base(tmp_path):
    """The config of a model, without its weights."""
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
def test_every_recipe_plans_from_a_models_config_alone(module, base, capsys):
    module.main(["--model", base, "--dataset", "nobody/nothing", "--plan", "true", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "Model: 30," in said or "Model: 31," in said, said
    assert "--max-steps or --max-tokens" in said


def test_a_plan_of_gpt2_is_of_the_model_that_is_trained(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    words = ["--model", str(tmp_path), "--dataset", "nobody/nothing", "--dropout", "0.0"]
    run = command_line.parse(pretrain.PretrainRun, words)
    planned, _, _ = planning.read_config(run, None)
    rates = dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), 0.0)
    trained = load_model(str(tmp_path), **rates).config
    for name in ("hidden_act", *rates):
        assert getattr(planned, name) == getattr(trained, name), name


def test_a_plan_counts_the_run_that_follows(tmp_path, capsys):
    (tmp_path / "story.txt").write_text(STORY)
    words = ["--dataset", str(tmp_path / "story.txt"), "--output-dir", str(tmp_path / "run"), *SMALL]
    words += ["--max-steps", "2", "--log-every", "1", "--accumulation-steps", "2", "--drop-tail", "true"]
    plan = planning.make_plan(command_line.parse(pretrain.PretrainRun, words))
    pretrain.main(words)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert plan.tokens == lines[-1]["tokens"] == 2 * plan.step_tokens
    facts = (tmp_path / "run" / "run.yaml").read_text()
    assert f"# parameters: {plan.parameters}\n" in facts
    for line in lines:  # the peak is said to be 1e11 above
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


def test_muon_is_rehearsed_as_its_products_of_one_block(monkeypatch):
    def flops(work, device, budget):
        with FlopCounterMode(display=False) as counter:
            work()
        return [counter.get_total_flops()]

    monkeypatch.setattr(probe, "seconds_of", flops)
    model, ids = tiny_model().train(), some_ids(2, 8)
    how = (lambda model: model(ids, labels=ids).loss, 2, 8, "no")
    assert probe.rehearse(model, *how).block_update == 0
    model = tiny_model().train()
    D, F = model.config.hidden_size, model.config.intermediate_size
    one = 4 * (3 * 2 * D**3) + 2 * (2 * 2 * D * D * F + 2 * D**3)  # X X^T, its square, and that times X
    assert probe.rehearse(model, *how, "muon").block_update == 5 * one


def test_rates_are_not_compared_where_nothing_is_held_out():
    build = sweep.validated(lambda run: SimpleNamespace(rows=dict.fromkeys(run.splits)))
    assert build(SimpleNamespace(splits=("train", "validation"))).rows
    with pytest.raises(ValueError, match="compared by validation loss, and data/mixed has no such split"):
        build(SimpleNamespace(dataset="data/mixed", splits=("train", "test")))


def test_lines_have_no_mfu_where_the_peak_is_not_known(tmp_path):
    lines = tiny_training(tmp_path)[2]
    assert lines and all("mfu" not in line and "data_wait" in line for line in lines)


def test_peaks_are_of_the_named_card_at_the_asked_precision():
    assert known_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert known_peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert known_peak("NVIDIA L40S", "bf16") == 362e12 != known_peak("NVIDIA L4", "bf16")
    assert known_peak("NVIDIA A100-SXM4-80GB", "no") is None and known_peak("Another card", "bf16") is None
    assert device_peak(torch.device("meta"), "no") is None


def test_what_is_timed_is_called_once_more_than_it_counts():
    calls = []
    assert len(seconds_of(lambda: calls.append(0), torch.device("cpu"), 0.0)) == 2 and len(calls) == 3


REFUSED = {
    "--plan-tflops 3": "need --plan true",
    "--plan true --plan-tflops 0": "--plan-tflops must be above 0",
    "--plan true --plan-devices 0": "--plan-devices must be at least 1",
    "--plan true --tokenizer nobody/nothing": "nobody/nothing",
    "--plan true --config-overrides hidden_size=33": "not a multiple of num_attention_heads",
    "--learning-rates 1e-3": "two or more different positive numbers",
    "--learning-rates 1e-3,1e-3": "two or more different",
    "--learning-rates 1e-3,-1": "two or more different positive numbers",
    "--learning-rates 1e-3,word": "two or more different positive numbers",
    "--learning-rates 1e-3,1e-2 --validation-fraction 0": "compared by validation loss",
    "--learning-rates 1e-3,1e-2 --resume training": "one rate's checkpoint",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_line(words, tmp_path, capsys):
    fails([*SMALL, "--output-dir", tmp_path / "run", *words.split()], REFUSED[words], capsys)


def test_an_adapter_is_planned_as_what_it_adapts(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    fails(["--model", tmp_path, "--plan", "true"], "is an adapter", capsys)


# --- Learning rates ----------------------------------------------------------------------------------------------


def test_a_sweep_names_the_best_rate_calls_divergence_by_its_name_and_can_be_resumed(tmp_path, capsys, monkeypatch):
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


def test_a_resumed_sweep_goes_on_with_all_but_lost_rates_and_says_in_run_yaml_what_is_asked_now(tmp_path, monkeypatch):
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
