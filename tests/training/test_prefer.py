"""Test preference tuning: it learns preferences, resumes bit for bit, and needs no second copy of the weights."""

import json
import shutil

import crash
import pytest
from accelerate.state import AcceleratorState, PartialState
from bad_input import fails, snapshot
from safetensors.numpy import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt.train import reference_logps
from scratch_gpt_training import prefer


WORDS = "sea sun sand boat wave salt tree moss deer tram shop bell".split()
OPTIONS = ["--device", "cpu", "--mixed-precision", "no", "--learning-rate", "3e-3", "--log-every", "5"]


def run(*arguments) -> None:
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    prefer.main([str(argument) for argument in arguments])


def pairs() -> list[dict]:
    """Return sixty questions; the better answer is polite."""
    texts = [f"{WORDS[n % 12]} and {WORDS[n // 12]}" for n in range(60)]
    return [{"prompt": f"Where is {text}?", "chosen": f"Please, {text}.", "rejected": f"No {text}!"} for text in texts]


def judged() -> list[dict]:
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if n % 2 else "rejected"], "label": n % 2 == 1}
        for n, row in enumerate(pairs())
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Make a folder with a tiny model of 302 tokens and chatml, and files of pairs and of judged answers."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([" ".join(row.values()) for row in pairs()], vocab_size=300)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=192, initializer_range=0.02)
    store_format(tokenizer, "chatml", model)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, rows in (("pairs", pairs()), ("judged", judged())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(base, name="pairs") -> list:
    return ["--model", base / "model", "--dataset", base / f"{name}.jsonl", *OPTIONS]


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(*arguments(base), "--output-dir", folder, "--max-steps", 12, "--eval-every", 6, "--keep", 9)
    return folder


def results(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text())["results"]


def test_a_run_learns_preferences_and_writes_the_documented_files(trained):
    before, after = results(trained)["before/test"], results(trained)["test"]
    assert before["loss"] == pytest.approx(0.693147, abs=1e-4) and before["accuracy"] == 0.5
    assert after["accuracy"] == 1.0 and after["margin"] > 0.2 > before["margin"]
    assert set(after) == {"loss", "accuracy", "margin", "chosen_logps", "rejected_logps", "kl_from_reference"}
    assert before["kl_from_reference"] == pytest.approx(0, abs=1e-6) and after["kl_from_reference"] > 1e-4
    lines = [line for line in read_metrics(trained / "metrics.jsonl") if "eval_margin" in line]
    assert [line["step"] for line in lines] == [0, 6, 12] and "train_accuracy" in lines[0]
    splits = json.loads((trained / "manifest.json").read_text())["splits"]
    assert {name: part["rows"] for name, part in splits.items()} == {"train": 51, "validation": 3, "test": 6}
    AutoModelForCausalLM.from_pretrained(trained / "model")
    kept = AutoTokenizer.from_pretrained(trained / "model")
    assert "<|im_start|>" in kept.chat_template and kept.eos_token == "<|im_end|>"


def test_lora_uses_its_base_as_reference_without_a_second_copy(base, trained, tmp_path):
    run(*arguments(base), "--output-dir", tmp_path, "--tune", "lora", "--max-steps", 2, "--eval-every", 2)
    ours, theirs = (load_file(folder / "references.safetensors") for folder in (tmp_path, trained))
    for name in ("train", "validation", "test"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert results(tmp_path)["before/test"]["accuracy"] == 0.5


@pytest.mark.parametrize("loss_type, name", [("dpo", "pairs"), ("kto", "judged")])
def test_a_stopped_run_resumes_bit_for_bit_with_its_reference(loss_type, name, base, tmp_path, monkeypatch):
    words = [*arguments(base, name), "--loss-type", loss_type, "--max-steps", 8, "--eval-every", 4, "--keep", 9]
    words += ["--dropout", "0.1", "--batch-size", 4, "--accumulation-steps", 2]
    run(*words, "--output-dir", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "evaluation.json").unlink()
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-8")
    monkeypatch.setattr(reference_logps, "reference_logps", None)  # must not be computed again
    run(*words, "--output-dir", tmp_path / "b", "--resume", "latest")
    assert crash.differences(crash.outcome(tmp_path / "a"), crash.outcome(tmp_path / "b")) == []


def test_orpo_needs_no_reference(base, tmp_path):
    run(*arguments(base), "--loss-type", "orpo", "--output-dir", tmp_path, "--max-steps", 4, "--eval-every", 4)
    found = results(tmp_path)
    assert found["validation"]["loss"] < found["before/validation"]["loss"]
    assert set(load_file(tmp_path / "references.safetensors")).isdisjoint(("train", "validation", "test"))


BAD = {
    "--loss-type ppo": "--loss-type 'ppo' is not one of",
    "--beta 0": "--beta must be above 0",
    "--beta=-1": "--beta must be at least 0",
    "--streaming true": "remove --streaming",
    "--preset tiny": "Give --model",
    "--prompt-format llama": "--prompt-format must be .*, not 'llama'",
    "--max-length 9": "has two different answers within 9 tokens",
    "--max-length 999": "more than the model's context, 192",
    "--resume latest --beta 0.2": "beta",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_a_one_line_error_without_side_effects(line, base, trained, capsys):
    before = snapshot(trained)
    words = line.split()
    words += [] if "--resume" in words else ["--resume", "latest"]
    fails([*arguments(base), "--output-dir", trained, "--max-steps", 20, *words], BAD[line], capsys, prefer.main)
    assert snapshot(trained) == before


ROWS = {
    "equal": (
        [{"prompt": "a", "chosen": "b", "rejected": "b"}],
        "in 1 the chosen answer equals the rejected one",
    ),
    "judged": (judged(), "only --loss-type kto can use"),
    "tools": ([{**pairs()[0], "tools": [{"name": "look"}]}], "Row 1: the row has tools, which cannot be learned"),
    "no keys": ([{"text": "a"}], "no columns of one of the forms chosen and rejected; .*, only text"),
    "roles": ([{"chosen": [{"role": "assistant", "content": "a"}], "rejected": []}], "Row 1: the role 'assistant'"),
}


def test_a_split_with_one_prompt_has_no_answer_to_another_prompt(base, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs()[:20]))
    words = ["--model", base / "model", "--dataset", tmp_path / "rows.jsonl", "--loss-type", "kto"]
    message = "validation split: All 2 rows have the same prompt.*Give at least two prompts"
    fails([*words, "--output-dir", tmp_path / "run"], message, capsys, prefer.main)


@pytest.mark.parametrize("case", ROWS)
def test_bad_rows_are_one_line_errors(case, base, tmp_path, capsys):
    rows, message = ROWS[case]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", base / "model", "--dataset", tmp_path / "rows.jsonl", "--output-dir", tmp_path / "run"]
    fails(words, message, capsys, prefer.main)
    assert not (tmp_path / "run").exists()
