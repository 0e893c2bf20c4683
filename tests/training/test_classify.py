"""Test classification: padding has no effect, losses add up, and stock transformers loads the classifier."""

import json
import math
import shutil

import crash
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from bad_input import fails
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from labeled import classifier
from safetensors.torch import load_file
from tiny import padded, some_ids, tiny_gpt2, tiny_model
from tiny_run import script_evaluations
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, pipeline

from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt_training import classify, evaluate, prepare


# --- Padding -----------------------------------------------------------------------------------------------------

MODELS = {attention: classifier(attention=attention) for attention in ("eager", "sdpa")}
text_lengths = st.lists(st.integers(1, 20), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=text_lengths,
    more=st.integers(0, 44),
    side=st.sampled_from(["left", "right"]),
    pad_id=st.integers(0, 98),
    attention=st.sampled_from([*MODELS]),
)
@torch.no_grad()
def test_padding_never_changes_a_prediction(lengths, more, side, pad_id, attention):
    """Vary the amount, side and id of the padding, and the other rows of the batch."""
    texts = [some_ids(1, length, seed=n)[0] for n, length in enumerate(lengths)]
    alone = torch.cat([MODELS[attention](text[None]).logits for text in texts])
    batch = padded(texts, side=side, length=max(lengths) + more, pad_id=pad_id)
    assert_close(MODELS[attention](**batch).logits, alone, atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_text_may_end_in_the_padding_id():
    texts = [torch.tensor([5, 7, 0, 0]), torch.tensor([5, 7])]
    together = MODELS["sdpa"](**padded(texts, side="right", pad_id=0)).logits
    assert_close(together[0], MODELS["sdpa"](texts[0][None]).logits[0], atol=2e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


# --- The recipe --------------------------------------------------------------------------------------------------

WORDS = {"sea": ["boat", "wave", "salt"], "wood": ["tree", "moss", "deer"], "town": ["tram", "shop", "bell"]}
SMALL = ["--preset", "tiny", "--vocab-size", "300", "--max-length", "16", "--device", "cpu", "--batch-size", "8"]
SMALL += ["--config-overrides", "hidden_size=32,num_hidden_layers=2", "--learning-rate", "1e-2", "--log-every", "5"]


def run(*arguments) -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    classify.main([str(argument) for argument in arguments])


def texts(classes: int, count: int = 30) -> list[tuple[str, str]]:
    generator, names = np.random.default_rng(0), [*WORDS][:classes]
    return [(f"{' '.join(generator.choice(WORDS[name], 4))} {n}", name) for n in range(count) for name in names]


def write_rows(file, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def positions(tmp_path_factory):
    """Return sixty texts of two classes, six of them twice."""
    rows = [{"text": text, "label": label} for text, label in texts(2)]
    return write_rows(tmp_path_factory.mktemp("places") / "places.jsonl", [*rows, *rows[:6]])


@pytest.fixture(scope="module")
def trained(positions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("--dataset", positions, "--output-dir", folder, *SMALL, "--max-steps", 20, "--eval-every", 5)
    return folder


def test_a_run_learns_and_writes_the_documented_files(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model", "predictions.jsonl", "loss.png", "confusion.png", "evaluation.json", "run.yaml"} <= names
    content = json.loads((trained / "evaluation.json").read_text())
    results = content["results"]
    assert set(results) == {"before/validation", "before/test", "train", "validation", "test"}
    assert results["test"]["accuracy"] > 0.9 > results["before/test"]["accuracy"]
    assert set(results["test"]) == {"loss", "accuracy", "macro_f1", "calibration_error"}
    assert content["tables"]["test"]["labels"] == ["sea", "wood"]
    assert sum(map(sum, content["tables"]["test"]["confusion_matrix"])) == content["protocol"]["test"]["rows"]
    scored = [line for line in read_metrics(trained / "metrics.jsonl") if "test_loss" in line]
    assert [line["step"] for line in scored] == [0]  # and a last time at the end
    manifest = json.loads((trained / "manifest.json").read_text())
    assert sum(part["rows"] for part in manifest["splits"].values()) == 66
    assert sum(part["duplicates"] for part in manifest["splits"].values()) == 6


def test_a_checkpoint_predicts_as_the_model_does(trained, tmp_path, capsys):
    (tmp_path / "new.txt").write_text("boat wave salt\ntree moss deer\n")
    last = "last" if (trained / "last").exists() else "model"
    said = []
    for name in ("checkpoints/step-20", last):
        run("--model", trained / name, "--predict", tmp_path / "new.txt", "--device", "cpu")
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and len(said[0].splitlines()) == 2


def test_the_model_names_its_labels_and_predicts_as_the_run_did(trained, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(trained / "model")
    assert model.config.label2id == {"sea": 0, "wood": 1}
    scored = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    right = [row["label"] == row["predicted"] for row in scored]
    accuracy = json.loads((trained / "evaluation.json").read_text())["results"]["test"]["accuracy"]
    assert np.mean(right) == pytest.approx(accuracy)
    classify_text = pipeline("text-classification", model=str(trained / "model"), device="cpu")
    for batch_size in (1, 4):  # padded with the tokenizer's padding token
        found = classify_text([row["text"] for row in scored], batch_size=batch_size, truncation=True)
        for row, said in zip(scored, found, strict=True):
            assert said["label"] == row["predicted"]
            # The pipeline uses bf16.
            assert said["score"] == pytest.approx(row["probabilities"][said["label"]], abs=1e-2)
    file = tmp_path / "new.txt"
    file.write_text("".join(row["text"] + "\n" for row in scored))
    capsys.readouterr()
    run("--model", trained / "model", "--predict", file, "--device", "cpu")
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["text"], row["predicted"]) for row in again] == [(row["text"], row["predicted"]) for row in scored]
    file = tmp_path / "ODD.TXT"
    file.write_text("a boat\x0c there\u2028at sea\nan oak\n")  # two lines; other line breaks are part of a text
    run("--model", trained / "model", "--predict", file, "--device", "cpu")
    odd = [json.loads(line)["text"] for line in capsys.readouterr().out.strip("\n").split("\n")]
    assert odd == ["a boat\x0c there\u2028at sea", "an oak"]


def test_three_classes_by_number_from_gpt2_with_weights_and_lora(tmp_path, capsys):
    numbers = {name: str(n) for n, name in enumerate(WORDS)}
    rows = [(text, numbers[name]) for text, name in texts(3)]
    (tmp_path / "a.tsv").write_text("".join(f"{label}\t{text}\n" for text, label in rows[30:] + rows[:30:2]))
    tokenizer = train_tokenizer([text for text, _ in rows], vocab_size=280)
    tokenizer.pad_token = None
    stock = tiny_gpt2(vocab_size=len(tokenizer))
    stock.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    data = ["--dataset", tmp_path / "a.tsv", "--column-names", "label,text", "--model", tmp_path / "gpt2"]
    options = "--device cpu --max-steps 20 --learning-rate 1e-2 --balance weights --tune lora --output-dir".split()
    options.append(tmp_path / "run")
    too_long = [*data, *options, "--max-length", 65]
    fails(too_long, "--max-length 65 is more than the model's context, 64", capsys, classify.main)
    run(*data, *options)
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert content["results"]["test"]["loss"] < content["results"]["before/test"]["loss"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.id2label == {0: "0", 1: "1", 2: "2"} and model.config.vocab_size == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.eos_token_id
    run("--model", tmp_path / "run" / "adapter", "--predict", write_rows(tmp_path / "b.jsonl", [{"text": "boat"}]))


def test_several_labels_per_text(tmp_path):
    pairs = texts(3)
    rows = [
        {"body": f"{one} {other}", "tags": "|".join(sorted({a, b}))}
        for (one, a), (other, b) in zip(pairs, pairs[1:] + pairs[:1], strict=True)
    ]
    file = write_rows(tmp_path / "a.jsonl", rows)
    columns = ["--text-column", "body", "--label-column", "tags", "--label-separator", "|"]
    run("--dataset", file, *columns, "--output-dir", tmp_path / "run", *SMALL, "--max-steps", 20, "--eval-every", 10)
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert content["results"]["test"]["loss"] < content["results"]["before/test"]["loss"]
    scored = json.loads((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()[0])
    assert isinstance(scored["label"], list) and set(scored["probabilities"]) == set(WORDS)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.problem_type == "multi_label_classification"


def test_each_seed_is_a_separate_run_and_the_mean_is_reported(positions, tmp_path, capsys):
    arguments = ["--dataset", positions, "--output-dir", tmp_path / "run", *SMALL]
    arguments += ["--max-steps", 4, "--eval-every", 4, "--seeds", 2]
    run(*arguments)
    folders = [tmp_path / "run" / f"seed-{n}" for n in (0, 1)]
    found = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    losses = [each["results"]["test"]["loss"] for each in found]
    assert content["results"]["test"]["loss"] == pytest.approx(
        {"mean": np.mean(losses), "std": np.std(losses, ddof=1), "n": 2}
    )
    assert found[0]["protocol"]["test"]["sha256"] != found[1]["protocol"]["test"]["sha256"]
    model = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert model == (folders[0] / "model" / "model.safetensors").read_bytes()
    alone = [*arguments[:3], tmp_path / "alone", *arguments[4:-2], "--seed", 1]
    run(*alone)
    assert crash.differences(crash.outcome(folders[1]), crash.outcome(tmp_path / "alone")) == []
    shutil.rmtree(folders[1])
    capsys.readouterr()
    run(*arguments, "--resume", "latest")
    assert "seed-0 is already finished" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == content
    fails(arguments, "already holds a run", capsys, classify.main)
    one_seed = [*arguments[:3], folders[0], *arguments[4:], "--resume", "latest"]
    fails(one_seed, "holds a run of one seed", capsys, classify.main)


def test_a_stopped_run_resumes_bit_for_bit(positions, tmp_path):
    arguments = ["--dataset", positions, *SMALL, "--max-steps", 12, "--eval-every", 3, "--keep", 9, "--dropout", 0.1]
    arguments += ["--checkpoint-every", 3]
    run(*arguments, "--balance", "weights", "--output-dir", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "evaluation.json").unlink()
    for step in (6, 9, 12):
        shutil.rmtree(tmp_path / "b" / "checkpoints" / f"step-{step}")
    run(*arguments, "--balance", "weights", "--output-dir", tmp_path / "b", "--resume", "latest")
    assert crash.differences(crash.outcome(tmp_path / "a"), crash.outcome(tmp_path / "b")) == []
    one, other = ((tmp_path / name / "predictions.jsonl").read_text() for name in "ab")
    assert one == other


def test_patience_ends_a_run_and_the_best_model_is_kept(positions, tmp_path, monkeypatch):
    script_evaluations(monkeypatch, [3.0, 2.0, 2.5, 1.0, 1.5])
    wild = ["--max-steps", 40, "--eval-every", 1, "--patience", 2, "--warmup-steps", 0]
    run("--dataset", positions, "--output-dir", tmp_path / "run", *SMALL, *wild)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line]
    best = min(lines, key=lambda line: line["eval_loss"])
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (best["step"], lines[-1]["step"]) == (3, 5)
    assert content["protocol"]["step"] == best["step"]
    assert content["results"]["validation"]["loss"] == best["eval_loss"]


def test_the_head_is_drawn_by_the_seed_and_the_datasets_names_are_kept_in_their_order(tmp_path, capsys):
    columns = Features({"sms": Value("string"), "label": ClassLabel(names=["wood", "none", "sea"])})
    rows = {"sms": [text for text, _ in texts(2)], "label": [label for _, label in texts(2)]}
    Dataset.from_dict(rows, columns).to_parquet(tmp_path / "a.parquet")
    arguments = ["--dataset", tmp_path / "a.parquet", "--text-column", "sms", *SMALL, "--max-steps", 0]
    heads = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*arguments, "--output-dir", tmp_path / name, "--seed", seed)
        heads.append(load_file(tmp_path / name / "model" / "model.safetensors")["score.weight"])
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    config = json.loads((tmp_path / "a" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "wood", "1": "none", "2": "sea"}
    assert "without a training row: none" in capsys.readouterr().out
    run(*arguments, "--output-dir", tmp_path / "weighted", "--balance", "weights")
    results = json.loads((tmp_path / "weighted" / "evaluation.json").read_text(encoding="utf-8"))["results"]
    assert math.isfinite(results["test"]["loss"])


def test_a_separate_test_set_is_scored_completely_and_removed_from_training(tmp_path, capsys):
    rows = [{"text": text, "label": label} for text, label in texts(2)]
    train, test = rows[:50], [*rows[40:], {"text": "boat  boat", "label": "sea"}]
    files = [write_rows(tmp_path / f"{name}.jsonl", part) for name, part in (("a", train), ("b", test))]
    words = ["--dataset", files[0], "--test-dataset", files[1], "--output-dir", tmp_path / "run"]
    run(*words, *SMALL, "--max-steps", 6, "--mixed-precision", "no")
    assert "Not used for training: 10 rows with a text of the test set." in capsys.readouterr().out
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert [source["dataset"] for source in manifest["sources"]] == ["a.jsonl", "b.jsonl"]
    assert {name: part["rows"] for name, part in manifest["splits"].items()} == {
        "train": 36,
        "validation": 4,
        "test": 21,
    }
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    for name in ("model", "checkpoints/step-6"):
        if name == "model" or content["protocol"]["step"] == 6:
            out = ["--output-dir", tmp_path / name, "--device", "cpu"]
            evaluate.main([str(word) for word in [tmp_path / "run" / name, "--dataset", files[1], *out]])
            again = json.loads((tmp_path / name / "evaluation.json").read_text(encoding="utf-8"))
            assert again["results"]["b"].pop("contaminated") == pytest.approx(10 / 21)
            assert again["results"]["b"] == pytest.approx(content["results"]["test"], abs=1e-5)
            assert again["tables"]["b"]["confusion_matrix"] == content["tables"]["test"]["confusion_matrix"]
            lines = (tmp_path / name / "b-predictions.jsonl").read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["label"] for line in lines] == [row["label"] for row in test]


def test_a_split_of_prepared_text_is_the_test_set(tmp_path):
    rows = [{"text": text, "label": label} for text, label in texts(2)]
    words = ["--dataset", write_rows(tmp_path / "a.jsonl", rows), "--task", "text", "--test-fraction", "0.2"]
    prepare.main([*words, "--output-dir", str(tmp_path / "p")])
    run(
        "--dataset", tmp_path / "p", "--test-split", "test", "--output-dir", tmp_path / "run", *SMALL, "--max-steps", 0
    )
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert [source["split"] for source in manifest["sources"]] == ["train", "test"]
    assert manifest["splits"]["test"]["rows"] == 12


BAD = {
    "--test-split test": "has no splits. Remove --test-split, or name a file",
    "--test-dataset=": "--test-dataset or --test-split is empty",
    "--test-dataset x.jsonl --test-fraction 0.5": "Remove it if you give a separate test set",
    "--test-dataset places": "are in the test set, so none is left to train on",
    "--label-column kind": "no column 'kind', only text, label. Choose with --label-column",
    "--text-column body": "no column 'body', only text, label. Choose with .* --text-column",
    "--label-column text": "1 distinct text, but there are 3 splits",
    "--column-names a,b": "without a header; places.jsonl is not one",
    "--balance some": "balance.*some",
    "--seeds 0": "--seeds must be at least 1",
    "--streaming true": "remove --streaming",
    "--seeds 2 --resume .": "one seed's checkpoint",
    "--validation-fraction 0": "--keep-best and --patience need a validation split",
    "--label-separator=": "--label-separator is empty",
    "--predict=": "--predict is empty",
    "--dataset /no/where.csv": "no such file",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_a_one_line_error(line, positions, tmp_path, capsys):
    arguments = [
        "--dataset",
        positions,
        "--preset",
        "tiny",
        "--vocab-size",
        "300",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    fails([*arguments, *line.replace(" places", f" {positions}").split()], BAD[line], capsys, classify.main)
    assert not (tmp_path / "run").exists()


ROWS = {
    "one class only": ([("a", "x"), ("b", "x")], "At least 2 classes are needed"),
    "too few": ([("a", "x"), ("b", "x"), ("c", "x"), ("d", "y"), ("e", "y"), ("e", "y")], "Class 'y' has 2 distinct"),
    "an empty text": ([("a", "x"), ("", "y")], "Row 2 has an empty text"),
    "no label": ([("a", "x"), ("b", None)], "Row 2 has no label"),
}


@pytest.mark.parametrize("case", ROWS)
def test_bad_rows_are_one_line_errors(case, tmp_path, capsys):
    rows, message = ROWS[case]
    file = write_rows(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in rows])
    arguments = ["--dataset", file, "--preset", "tiny", "--vocab-size", "300", "--output-dir", str(tmp_path / "run")]
    fails(arguments, message, capsys, classify.main)
    assert not (tmp_path / "run").exists()


def test_predicting_with_a_model_that_is_not_a_classifier_is_a_one_line_error(trained, tmp_path, capsys):
    file = write_rows(tmp_path / "a.jsonl", [{"text": "boat"}, {"text": " "}])
    fails(["--model", trained / "model", "--predict", file], "Row 2 has an empty text", capsys, classify.main)
    tiny_model().save_pretrained(tmp_path / "causal")
    file = write_rows(tmp_path / "b.jsonl", [{"text": "boat"}])
    fails(
        ["--model", tmp_path / "causal", "--predict", file],
        "is a language model, not a classifier",
        capsys,
        classify.main,
    )
    absent = ["--output-dir", tmp_path / "absent", "--predict", file]
    fails(absent, "absent/model: no such folder", capsys, classify.main)
