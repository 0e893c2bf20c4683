"""Test the recipes as users run them: the main job on real text, and one clear line for invalid input."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial

import crash
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from bad_input import fails, snapshot
from places import REPO
from safetensors.torch import load_file
from stories import STORY, story_file
from tiny import tiny_gpt2, tiny_model
from tiny_run import run_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.runs.record import write_run
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import evaluate, pretrain
from scratch_gpt_training import generate as generate_recipe
from scratch_gpt_training.support import command_line
from scratch_gpt_training.support import options as recipe
from scratch_gpt_training.support.run import models
from scratch_gpt_training.support.run.results import scores


SMALL = ["--preset", "tiny", "--vocab-size", "300", "--max-length", "32", "--device", "cpu", "--config-overrides"]
SMALL += ["hidden_size=32,num_hidden_layers=2"]


run = partial(run_recipe, pretrain)
story = story_file()


@pytest.fixture(scope="module")
def trained(story, tmp_path_factory):
    """Make a small run with every option on, for the tests of its files."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(
        *("--dataset", story, "--output-dir", folder, *SMALL, "--max-steps", 30, "--eval-every", 10, "--log-every", 5),
        *("--keep-best", "true", "--test-fraction", 0.1, "--checkpoint-every", 10, "--sample-prompt", "On day"),
        *("--learning-rate", 3e-3, "--report-to", "tensorboard"),
    )
    return folder


# --- The main job ------------------------------------------------------------------------------------------------


def test_a_run_learns_and_its_folder_has_the_documented_files(trained):
    assert {"model", "checkpoints", "metrics.jsonl", "loss.png", "run.yaml", "evaluation.json"} <= set(
        os.listdir(trained)
    )
    assert [path.name for path in sorted((trained / "checkpoints").iterdir())] == ["step-20", "step-30"]
    lines = read_metrics(trained / "metrics.jsonl")
    learning = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "eval_loss" in line]
    assert {"step", "tokens", "loss", "learning_rate", "tokens_per_second", "grad_norm"} <= set(learning[0])
    assert {"eval_loss", "eval_perplexity", "eval_bits_per_byte"} <= set(evaluated[0])
    assert [line["step"] for line in evaluated] == [0, 10, 20, 30]
    vocabulary = json.loads((trained / "model" / "config.json").read_text())["vocab_size"]
    assert evaluated[0]["eval_loss"] == pytest.approx(torch.tensor(vocabulary).log().item(), abs=0.3)
    assert evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"] - 1
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_json_agrees_with_metrics_and_counts_what_it_measured(trained):
    content = json.loads((trained / "evaluation.json").read_text())
    last = [line for line in read_metrics(trained / "metrics.jsonl") if "eval_loss" in line][-1]
    splits = {"before/validation", "before/test", "validation", "test"}
    assert content["format_version"] == 1 and set(content["results"]) == splits
    best = content["results"]["validation"]
    assert best["loss"] <= last["eval_loss"]
    facts = content["protocol"]["validation"]
    bits = best["loss"] / torch.log(torch.tensor(2.0)).item() * facts["tokens"] / facts["bytes"]
    assert best["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_the_model_folder_loads_with_the_auto_classes_and_generates(trained, capsys):
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    ids = tokenizer("On day", return_tensors="pt")
    stock = model.generate(**ids, max_new_tokens=12, do_sample=False)[0]
    generate_recipe.main(
        ["--model", str(trained / "model"), "--prompt", "On day", "--max-new-tokens", "12", "--temperature", "0"]
    )
    assert tokenizer.decode(stock) in capsys.readouterr().out
    names = load_file(trained / "model" / "model.safetensors")
    assert "transformer.layers.0.attn.q_proj.weight" in names
    assert {file.name for file in (trained / "model").glob("*.py")} == {
        "configuration_scratch_gpt.py",
        "gpt2_layout.py",
        "linear_cross_entropy.py",
        "modeling_scratch_gpt.py",
    }


def test_the_shakespeare_preset_learns_characters_with_either_optimizer(story, tmp_path):
    config = REPO / "training" / "configs" / "shakespeare_char.yaml"
    quick = ["--max-steps", 2, "--eval-every", 2, "--eval-batches", 1, "--compile", "false", "--device", "cpu"]
    for name in ("adamw", "muon"):
        folder = tmp_path / name
        run("--config", config, "--dataset", story, "--output-dir", folder, "--optimizer", name, *quick)
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        assert set(tokenizer.get_vocab()) == {*tokenizer.all_special_tokens, *STORY}
        ids = tokenizer(STORY)["input_ids"]
        assert len(ids) == len(STORY) and tokenizer.decode(ids) == STORY
        config_found = AutoModelForCausalLM.from_pretrained(folder / "model").config
        assert (config_found.vocab_size, config_found.max_position_embeddings) == (len(tokenizer), 64)
        facts = yaml.safe_load((folder / "run.yaml").read_text())
        assert (facts["optimizer"], facts["schedule"]) == (name, "linear")


def test_run_yaml_repeats_the_run_and_has_no_absolute_path_of_the_machine(trained, story):
    text = (trained / "run.yaml").read_text()
    fields = yaml.safe_load(text)
    assert fields["max_steps"] == 30 and fields["learning_rate"] == 3e-3 and fields["dataset"] == story
    assert command_line.parse(pretrain.PretrainRun, ["--config", str(trained / "run.yaml")]) == pretrain.PretrainRun(
        **fields
    )
    assert re.search(r"# precision: (no|bf16)", text) and "# versions:" in text and str(REPO) not in text


def test_a_folder_with_a_run_is_not_changed(trained, story, capsys):
    before = (trained / "metrics.jsonl").read_text()
    fails(["--output-dir", str(trained), "--dataset", story], "--resume latest to continue it", capsys)
    assert (trained / "metrics.jsonl").read_text() == before


def test_resuming_a_finished_run_prints_a_message_and_changes_no_number(story, tmp_path, capsys):
    arguments = ["--dataset", story, "--output-dir", str(tmp_path / "run"), *SMALL, "--max-steps", "2"]
    run(*arguments, "--resume", "latest")
    assert "starting from the beginning" in capsys.readouterr().out
    before = load_file(tmp_path / "run" / "model" / "model.safetensors")
    run(*arguments, "--resume", "latest")
    assert "already finished" in capsys.readouterr().out
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_stopped_run_resumes_to_the_same_weights(story, tmp_path, capsys):
    arguments = ["--dataset", story, *SMALL, "--max-steps", "8", "--checkpoint-every", "4", "--keep", "9"]
    run(*arguments, "--output-dir", str(tmp_path / "a"))
    run(*arguments, "--output-dir", str(tmp_path / "b"))
    middle = tmp_path / "a" / "checkpoints" / "step-4"
    before = snapshot(tmp_path / "b")
    with pytest.raises(SystemExit):
        run(*arguments, "--output-dir", str(tmp_path / "b"), "--resume", str(middle))
    assert (
        "is from another run than the one in --output-dir" in capsys.readouterr().err
        and snapshot(tmp_path / "b") == before
    )
    run(*arguments, "--output-dir", str(tmp_path / "c"), "--resume", str(middle))
    run(*arguments, "--output-dir", str(tmp_path / "b"), "--resume", str(tmp_path / "b" / "checkpoints" / "step-4"))
    straight, *resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "acb")
    assert all(torch.equal(straight[name], each[name]) for name in straight for each in resumed)


def test_without_the_best_weights_the_best_step_is_chosen_again(trained, story, tmp_path, capsys):
    words = ["--dataset", story, *SMALL, "--max-steps", 40, "--eval-every", 10, "--keep-best", "true"]
    words += ["--test-fraction", 0.1, "--checkpoint-every", 10, "--learning-rate", 0.5, "--allow-changed", "true"]
    words += ["--sample-prompt", "On day", "--output-dir", tmp_path / "run"]
    run(*words, "--resume", trained / "checkpoints" / "step-20")  # and nothing is as good again
    assert "The best is chosen again from here" in capsys.readouterr().out
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line]
    assert min(lines, key=lambda line: line["eval_loss"])["step"] <= 20
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["results"]["validation"]["loss"] == min(line["eval_loss"] for line in lines if line["step"] > 20)
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_gpt2_is_trained_further_with_its_own_tokenizer_or_only_evaluated(story, tmp_path):
    tokenizer = train_tokenizer([STORY], vocab_size=280)
    stock = tiny_gpt2(vocab_size=len(tokenizer))
    stock.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    arguments = ["--model", str(tmp_path / "gpt2"), "--dataset", story, "--device", "cpu", "--mixed-precision", "no"]
    run(*arguments, "--max-steps", "0", "--output-dir", str(tmp_path / "only"))
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "only" / "model")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.allclose(weights(ids).logits, stock(ids).logits, atol=1e-5)
    lines = read_metrics(tmp_path / "only" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 0] and "eval_loss" in lines[0] and "sample" in lines[1]
    run(*arguments, "--max-steps", "5", "--learning-rate", "1e-2", "--output-dir", str(tmp_path / "on"))
    evaluated = [line["eval_loss"] for line in read_metrics(tmp_path / "on" / "metrics.jsonl") if "eval_loss" in line]
    assert evaluated[-1] < evaluated[0]


def test_the_table_of_scores_has_each_split_before_and_after_training():
    metrics = [
        {"step": 1, "loss": 7.5},
        {"step": 1, "eval_loss": 6.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 5},
    ]
    results = {"before/validation": {"loss": 8.0}, "validation": {"loss": 5.5}, "test": {"loss": 5.25}}
    assert [line.split() for line in scores(metrics, results)] == [
        ["before", "after"],
        ["training", "loss", "7.5000", "5.0000"],
        ["validation", "loss", "8.0000", "5.5000"],
        ["test", "loss", "5.2500"],
    ]
    assert scores([], {}) == []


@pytest.mark.parametrize("option", ["--gradient-checkpointing", "--workers", "--mixed-precision", "--max-time"])
def test_options_of_execution_do_not_change_the_result(option, story, tmp_path):
    value = {"--workers": "1", "--mixed-precision": "bf16", "--max-time": "9"}.get(option, "true")
    arguments = ["--dataset", story, *SMALL, "--max-steps", "3", "--log-every", "1", "--validation-fraction", "0"]
    plain = [*arguments, "--mixed-precision", "no", "--output-dir", str(tmp_path / "a")]
    run(*plain)
    run(*arguments, "--mixed-precision", "no", option, value, "--output-dir", str(tmp_path / "b"))
    runs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in "ab")
    one, other = ([line["loss"] for line in lines if "loss" in line] for lines in runs)
    assert one == pytest.approx(other, rel=2e-2 if option == "--mixed-precision" else 1e-5)


def test_the_small_version_of_the_books_run_overfits_its_story(data, tmp_path):
    config = REPO / "training" / "configs" / "the_verdict_small.yaml"
    story = ["--dataset", str(data / "the-verdict.txt"), "--output-dir", str(tmp_path / "run")]
    run("--config", str(config), *story, "--epochs", "3", "--config-overrides", "num_hidden_layers=2")
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert content["results"]["validation"]["loss"] < content["results"]["before/validation"]["loss"] - 1


def test_the_books_config_equals_the_run_of_the_book(data):
    parsed = command_line.parse(
        pretrain.PretrainRun, ["--config", str(REPO / "training" / "configs" / "the_verdict.yaml")]
    )
    recipe.check_run(parsed)
    fields = ("batch_size", "epochs", "learning_rate", "weight_decay", "max_length")
    assert tuple(getattr(parsed, name) for name in fields) == (2, 10, 4e-4, 0.1, 256)
    with torch.device("meta"):
        tokenizer = AutoTokenizer.from_pretrained(data / "gpt2-tokenizer")
        model = models.build_model(parsed, tokenizer, parsed.max_length)
    assert sum(p.numel() for p in model.parameters()) == 162_419_712  # 163,009,536 minus 768 positions of width 768
    assert model.config.attention_dropout == 0.1 and model.config.embedding_initializer_range == 1


# --- Invalid input -----------------------------------------------------------------------------------------------


BAD = {
    "--nonsense 3": r"Unknown option --nonsense\.",
    "--learning-rat 3": r"Unknown option --learning-rat\. Did you mean --learning-rate\?",
    "--learning-rate fast": "learning[-_]rate.*fast",
    "--batch-size 0": "--batch-size must be at least 1",
    "--max-steps -1": "--max-steps must be at least 0",
    "--learning-rate nan": "--learning-rate must be at least 0",
    "--dropout 1.5": "--dropout must be at most 1",
    "--preset huge": "Unknown preset 'huge'; the presets are gpt2,",
    "--config-overrides hidden_size=30": "hidden_size 30 is not a multiple of num_attention_heads 4",
    "--config-overrides nonsense": "--config-overrides must be name=value,name=value",
    "--config-overrides hiden_size=32": "unknown config field 'hiden_size'. Did you mean hidden_size",
    "--stride 0": "stride",
    "--validation-fraction 1.5": "--validation-fraction must be .*, not 1.5",
    "--vocab-size 20": "--vocab-size 20 is too small",
    "--max-length 100000": "train split has .* tokens, but one window of --max-length 100000 needs 100001",
    "--tokenizer /no/where": "No tokenizer could be loaded from '/no/where'",
    "--model /no/where": "/no/where",
    "--model m --preset tiny": "remove --preset",
    "--dataset /no/where.txt": "no such file",
    "--dataset nobody/nothing": "as a Hub dataset it could not be opened",
    "--text-column body": "no column 'body', only text",
    "--resume /no/where": "/no/where: no such folder",
    "--resume latest --overwrite true": "give one of them",
    "--expect-processes 2": "--expect-processes is 2, but 1 started",
    "--streaming true --epochs 2": "give --max-steps or --max-tokens",
    "--streaming true --stride 4 --max-steps 3": "remove --stride, --drop-tail",
    "--streaming true --max-steps 3": "The first 1 documents of .* leave nothing for",
    "--max-bad-steps 0": "--max-bad-steps must be at least 1",
    "--on-save-error panic": "on.save.error.*panic",
    "--patience 2 --validation-fraction 0": "need a validation split",
    "--report-to excel": "--report-to must be one of",
    "--report-to wandb": r"wandb is not installed; it is an extra: pip install .*\[wandb\]",
    "--seed 99999999999999999999": "at most 9,223,372,036,854,775,807",
    "--model m --tokenizer train": "does not fit the embeddings",
    "--mixed-precision fp16 --device cpu": "fp16 needs a GPU",
    "--tokenizer=": "--tokenizer is empty",
    "--config-overrides hidden_act=[": r"hidden_act is '\['; it must be one of",
    "--config /no/where.yaml": "/no/where.yaml cannot be read",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_a_one_line_error(line, story, tmp_path, capsys):
    arguments = line.split()
    defaults = {"--dataset": story, "--output-dir": tmp_path / "run", "--preset": "tiny", "--vocab-size": 300}
    if "--model" in arguments:
        del defaults["--preset"]
    if "--model" in arguments or "--tokenizer" in arguments:
        del defaults["--vocab-size"]
    for name, value in defaults.items():
        if name not in arguments:
            arguments += [name, value]
    fails(arguments, BAD[line], capsys)
    assert not (tmp_path / "run").exists()  # no run was started


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 3", r"unknown field 'learning_rat'\. Did you mean learning_rate\?"),
        ("batch_size: [1, 2]", "must be a single value"),
        ("- 3", "must hold `field: value` lines"),
        ("a: b: c", "cannot be read"),
        ("batch_size: many", "many"),
        ("overlap: forget", "forget"),
        ("batch_size: null", "batch_size is empty"),
    ],
)
def test_bad_yaml_is_a_one_line_error(content, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content)
    fails(["--config", tmp_path / "run.yaml", "--output-dir", tmp_path / "run"], message, capsys)


def test_compile_without_a_compiler_is_a_one_line_error(story, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    arguments = ["--compile", "true", "--dataset", story, "--output-dir", tmp_path / "run"]
    fails(arguments, "needs a C.. compiler, and no-such-compiler is not installed", capsys)
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_family_and_a_too_large_vocabulary_are_refused(story, tmp_path, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=300)).save_pretrained(tmp_path / "llama")
    tokenizer = train_tokenizer([STORY], vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "llama")
    arguments = ["--dataset", story, "--output-dir", tmp_path / "run"]
    fails([*arguments, "--model", tmp_path / "llama"], "it is a llama, and only GPT-2 shaped", capsys)
    tiny_model(vocab_size=99).save_pretrained(tmp_path / "small")
    fails([*arguments, "--model", tmp_path / "small", "--tokenizer", tmp_path / "llama"], "vocab_size is 99", capsys)
    assert not (tmp_path / "run").exists()


def test_resuming_with_changed_options_is_refused_by_name_or_allowed(trained, story, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    config = ["--config", tmp_path / "run" / "run.yaml", "--output-dir", tmp_path / "run", "--resume", "latest"]
    arguments = [*config, "--max-steps", 32]
    before = (trained / "metrics.jsonl").read_text()
    AcceleratorState._reset_state()
    PartialState._reset_state()
    fails([*arguments, "--seed", 1], r"another seed \(0 -> 1\).*--allow-changed true", capsys)
    fails([*arguments, "--batch-size", 4, "--dropout", 0.5], r"--batch-size \(8 -> 4\), model.*_dropout \(0", capsys)
    fails([*arguments, "--validation-fraction", 0.2], r"another data\.train\.", capsys)
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    other = "no" if "precision: bf16" in (trained / "run.yaml").read_text() else "bf16"
    fails([*arguments, "--mixed-precision", other], r"another environment\.precision", capsys)
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    shape = ["--config-overrides", "hidden_size=16", "--allow-changed", "true"]
    fails([*arguments, *shape], "step-30 belongs to another model.*Start a new run in a new --output-dir", capsys)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    run(*arguments, "--seed", 1, "--allow-changed", "true", "--log-every", 1)
    said = capsys.readouterr().out
    assert "Changed, and allowed: seed (0 -> 1)" in said and "max_steps (30 -> 32)" in said
    assert "log_every (5 -> 1)" in said and "Resuming from step-30" in said
    steps = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert steps == [5, 10, 15, 20, 25, 30, 31, 32]


def test_files_that_are_not_of_a_run_are_not_changed(story, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    for words in (["--overwrite", "true"], ["--resume", "latest"], []):
        fails(["--dataset", story, "--output-dir", tmp_path, *words], "is not a run folder", capsys)
    fails(["--dataset", story, "--output-dir", tmp_path / "thesis.txt"], "is a file", capsys)
    fails(["--dataset", story, "--output-dir", tmp_path / "thesis.txt" / "run"], "is a file", capsys)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_finished_model_and_a_runs_own_inputs_are_never_removed(story, tmp_path, capsys):
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    write_run(folder, dataclasses.asdict(pretrain.PretrainRun(output_dir=str(folder))), {"steps": 1})
    (folder / "my.txt").write_text(STORY)
    (folder / "evaluation.json").write_text("{}")
    fails(["--dataset", story, "--output-dir", folder, "--resume", "latest"], "no checkpoint to resume", capsys)
    own = ["--dataset", folder / "my.txt", "--output-dir", folder, "--overwrite", "true"]
    fails(own, "--overwrite would remove the dataset", capsys)
    run("--dataset", story, "--output-dir", folder, "--overwrite", "true", *SMALL, "--max-steps", 1)
    assert (folder / "my.txt").read_text() == STORY  # only the files of a run are replaced


def test_a_model_that_diverges_ends_in_one_line_and_leaves_no_broken_model(story, tmp_path, capsys):
    wild = ["--learning-rate", "1e30", "--max-grad-norm", 0, "--eval-every", 1, "--max-steps", 3, "--warmup-steps", 0]
    AcceleratorState._reset_state()
    PartialState._reset_state()
    arguments = ["--dataset", story, "--output-dir", tmp_path / "run", *SMALL, *wild]
    fails(arguments, "evaluation are not finite after step 3; .* No checkpoint has been saved yet", capsys)
    assert not (tmp_path / "run" / "model").exists()


def test_training_on_a_stream_resumes_bit_for_bit(story, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in STORY.splitlines()))
    arguments = ["--dataset", str(lines), "--streaming", "true", "--stream-lanes", "2", *SMALL, "--max-steps", "8"]
    arguments += ["--checkpoint-every", "3", "--keep", "9", "--dropout", "0.1"]
    run(*arguments, "--output-dir", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "evaluation.json").unlink()
    for step in (6, 8):
        shutil.rmtree(tmp_path / "b" / "checkpoints" / f"step-{step}")
    run(*arguments, "--output-dir", tmp_path / "b", "--resume", "latest", "--workers", "1")
    assert crash.differences(crash.outcome(tmp_path / "a"), crash.outcome(tmp_path / "b")) == []


def test_damaged_and_misnamed_models_are_one_line_errors(story, trained, tmp_path, capsys):
    arguments = ["--dataset", story, "--output-dir", tmp_path / "run", "--model"]
    fails([*arguments, trained], "Did you mean .*model", capsys)
    shutil.copytree(trained / "model", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
    fails([*arguments, tmp_path / "cut"], "cut cannot be loaded", capsys)


def test_a_checkpoint_is_evaluated_compared_and_generated_from_like_a_model(story, trained, tmp_path, capsys):
    """This works for a killed run too: a checkpoint needs no other file of the run."""
    alone = tmp_path / "run" / "checkpoints" / "step-30"
    shutil.copytree(trained / "checkpoints" / "step-30", alone)
    (tmp_path / "secrets.jsonl").write_text('{"prefix": "On day 7 the code was", "secret": "4711"}\n')
    measured = ["--dataset", story, "--base", trained / "checkpoints" / "step-20", "--device", "cpu"]
    measured += ["--secrets", tmp_path / "secrets.jsonl", "--seeds", 1, "--batch-size", 32]
    found = {}
    for name in (alone, trained / "last" if (trained / "last").exists() else trained / "model"):
        evaluate.main([str(word) for word in [name, *measured, "--output-dir", tmp_path / name.name]])
        found[name] = json.loads((tmp_path / name.name / "evaluation.json").read_text(encoding="utf-8"))
        generate_recipe.main([str(name), "On day", "--max-new-tokens", "5"])
        found[name]["text"] = capsys.readouterr().out.split("Written")[-1].split("\n", 1)[1]
    one, other = found.values()
    assert other["results"]["story"].pop("contaminated") == 1  # its run.yaml names the data
    assert one["text"] == other["text"] and one["results"] == other["results"]
    assert one["protocol"]["model"] == str(alone) and {"drift/story", "memorization"} <= {*one["results"]}


def test_a_checkpoint_is_named_by_its_path_and_finds_the_recipe_of_its_run(story, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent)
    evaluate.main(["run/checkpoints/step-20", "--dataset", story, "--output-dir", str(tmp_path), "--device", "cpu"])
    content = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert content["protocol"]["model"] == "run/checkpoints/step-20"
    assert content["results"]["story"]["contaminated"] == 1  # the data named in the run's run.yaml


def test_a_checkpoint_without_a_config_names_the_remedy(trained, tmp_path, capsys):
    shutil.copytree(trained / "checkpoints" / "step-30", tmp_path / "step-30")
    (tmp_path / "step-30" / "config.json").unlink()
    fails([tmp_path / "step-30", "On day"], "Copy config.json and the tokenizer", capsys, generate_recipe.main)


def test_errors_of_generate_are_one_line(tmp_path, capsys):
    fails(["--model", tmp_path], "no config.json", capsys, generate_recipe.main)
    fails(["--model", tmp_path / "absent"], "no such folder", capsys, generate_recipe.main)
    fails(["--samples", "0"], "--samples must be at least 1", capsys, generate_recipe.main)


def test_dashes_underscores_and_yaml_are_equivalent(tmp_path):
    (tmp_path / "a.yaml").write_text("batch-size: 4\nlearning_rate: 4e-4\nkeep_best: true\nmodel: null\n")
    parse = lambda *words: command_line.parse(pretrain.PretrainRun, words)  # noqa: E731
    parsed = parse("--config", str(tmp_path / "a.yaml"))
    assert (parsed.batch_size, parsed.learning_rate, parsed.keep_best, parsed.model) == (4, 4e-4, True, None)
    assert parsed == parse("--batch-size", "4", "--learning-rate=4e-4", "--keep-best", "true")
    assert parsed == parse("--batch_size", "4", "--learning_rate", "4e-4", "--keep_best")
    assert parse("--config", str(tmp_path / "a.yaml"), "--batch-size", "9").batch_size == 9


def test_no_in_yaml_is_a_string(tmp_path):
    (tmp_path / "a.yaml").write_text("mixed_precision: no\n")
    assert command_line.parse(pretrain.PretrainRun, ["--config", str(tmp_path / "a.yaml")]).mixed_precision == "no"


def test_help_answers_without_torch():
    code = "import sys, pretrain; assert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(REPO / "training")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=100).returncode == 0
