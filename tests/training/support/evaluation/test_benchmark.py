"""Test the benchmark: public tasks from local files, and mean and spread over models of several seeds."""

import json
import statistics

import pytest
import torch
from bad_input import fails
from evaluated import evaluate_into, json_lines, save_parts
from stories import SUN as STORY
from tiny import tiny_model

from scratch_gpt.evaluation.benchmark_tasks import BLIMP
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import evaluate
from scratch_gpt_training.support import command_line


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make three models of other seeds, one of another shape, texts and files of tasks."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = train_tokenizer([STORY], vocab_size=300)
    for seed in range(3):
        torch.manual_seed(seed)
        model = tiny_model(vocab_size=len(tokenizer))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        save_parts(folder / f"seed-{seed}", model, tokenizer)
    save_parts(folder / "other", tiny_model(vocab_size=len(tokenizer), num_hidden_layers=1), tokenizer)
    (folder / "a.txt").write_text(STORY)
    (folder / "b.txt").write_text(STORY[::-1])
    tasks = folder / "tasks"
    (tasks / "blimp").mkdir(parents=True)
    (tasks / "lambada_openai.jsonl").write_text(json_lines([{"text": "The sun shines on the sea"}] * 2))
    choices = {"text": ["sun", "sea"], "label": ["A", "B"]}
    (tasks / "arc_easy.jsonl").write_text(json_lines([{"question": "Is it?", "choices": choices, "answerKey": "B"}]))
    for n, name in enumerate(BLIMP):
        pair = {"sentence_good": "The sun shines.", "sentence_bad": "The sun shine sea."}
        (tasks / "blimp" / f"{name}.jsonl").write_text(json_lines([pair] * (1 + n % 2)))
    return folder


WORDS = ["--texts", "a.txt", "b.txt", "--tasks", "lambada_openai", "arc_easy", "--task-files", "tasks"]


def test_texts_and_tasks_are_measured_in_one_command(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    content = evaluate_into(tmp_path / "out", "seed-0", *WORDS[:-2], "blimp", *WORDS[-2:])
    results, protocol = content["results"], content["protocol"]
    assert [*results] == ["a", "b", "lambada_openai", "arc_easy", "blimp"]
    assert results["a"]["bits_per_byte"] != results["b"]["bits_per_byte"]
    assert protocol["arc_easy"]["dataset"] == {"id": "allenai/ai2_arc", "config": "ARC-Easy", "split": "test"}
    assert protocol["lambada_openai"]["source"]["files"][0]["sha256"] and protocol["lambada_openai"]["rows"] == 2
    parts = content["tables"]["blimp"]["parts"]
    assert len(parts) == 67 and protocol["blimp"]["rows"] == 67 + 33
    assert results["blimp"]["acc"] == pytest.approx(statistics.mean(part["acc"] for part in parts.values()))


def test_models_of_several_seeds_give_mean_and_spread(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    single = [evaluate_into(tmp_path / f"{n}", f"seed-{n}", *WORDS)["results"] for n in range(3)]
    capsys.readouterr()
    content = evaluate_into(tmp_path / "all", "seed-0", *WORDS, "--seed-models", "seed-1", "seed-2")
    for name, values in single[0].items():
        for metric in values:
            numbers = [results[name][metric] for results in single]
            expected = {"mean": statistics.mean(numbers), "std": statistics.stdev(numbers), "n": 3}
            assert content["results"][name][metric] == pytest.approx(expected), (name, metric)
    assert content["protocol"]["model"] == "seed-0"
    assert content["protocol"]["a"]["models"] == ["seed-0", "seed-1", "seed-2"]
    assert content["tables"]["arc_easy"]["models"]["seed-2"] == single[2]["arc_easy"]
    said = capsys.readouterr().out
    assert "seed-1: lambada_openai: acc" in said and "\nlambada_openai: acc" in said


def test_a_benchmark_is_a_config_file(home, tmp_path, monkeypatch):
    (tmp_path / "benchmark.yaml").write_text("texts: [a.txt]\ntasks: [arc_easy]\ntask_files: tasks\n")
    monkeypatch.chdir(home)
    words = ["seed-0", "--config", str(tmp_path / "benchmark.yaml"), "--seed-models", "seed-1"]
    run = command_line.parse(evaluate.EvaluateRun, words, positional=("model",))
    assert (run.texts, run.tasks, run.seed_models) == (["a.txt"], ["arc_easy"], ["seed-1"])
    assert evaluate_into(tmp_path / "out", *words)["results"]["arc_easy"]["acc"]["n"] == 2


def test_without_files_the_rows_are_those_of_the_hub(home, tmp_path, monkeypatch):
    from scratch_gpt_training.support.evaluation import benchmark

    asked = []

    def open_rows(where, columns):
        asked.append(where[:4])
        raise ValueError("no connection")

    monkeypatch.setattr(benchmark, "open_rows", open_rows)
    with pytest.raises(SystemExit):
        evaluate_into(tmp_path / "out", home / "seed-0", "--tasks", "arc_easy")
    assert asked == [("allenai/ai2_arc", "ARC-Easy", "test", None)]


BAD = {
    "--tasks mmlu": "Unknown task 'mmlu'. Known are lambada_openai, arc_easy, blimp",
    "--tasks arc_easy --task-files blimp": "--task-files blimp has no file for arc_easy. Put the rows of allenai",
    "--tasks arc_easy arc_easy --task-files tasks": "Two sets have the name 'arc_easy'",
    "--texts a.txt --task-files tasks": "--task-files has no effect: it needs --tasks",
    "--texts a.txt --seed-models seed-0": "names a model twice, or MODEL itself",
    "--texts a.txt --seed-models seed-1 ./seed-1/": "names a model twice",
    "--texts a.txt --seed-models other": "other is not seed-0 with another seed: its num_hidden_layers is 1, not 2",
    "--questions a.json --seed-models seed-1": "--seed-models only works with likelihoods. Measure --questions",
    "--texts a.txt --seed-models absent/x/y": "no such folder",
    "--seed-models seed-1": "Nothing to measure",
}


@pytest.mark.parametrize("line", BAD)
def test_impossible_options_are_one_line_errors(line, home, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(home)
    out = tmp_path / "out"
    words = ["seed-0", *line.split(), "--output-dir", out, "--device", "cpu"]
    fails(words, BAD[line], capsys, evaluate.main)
    assert not (out / "evaluation.json").exists()


def test_two_files_of_a_task_are_an_error(home, tmp_path, capsys):
    for ending in ("jsonl", "json"):
        (tmp_path / f"arc_easy.{ending}").write_text(json.dumps({}))
    words = [home / "seed-0", "--tasks", "arc_easy", "--task-files", tmp_path, "--output-dir", tmp_path / "out"]
    fails(words, "has 2 files for arc_easy", capsys, evaluate.main)
