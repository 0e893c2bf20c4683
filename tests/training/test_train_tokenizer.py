"""Test the tokenizer recipe as users run it: a folder that transformers loads, or one clear line and no files."""

import json
import re

import pytest
from transformers import AutoTokenizer

from scratch_gpt.tokenization.tokenizer import decode, encode, fingerprint
from scratch_gpt_training import pretrain
from scratch_gpt_training import train_tokenizer as recipe


LINES = [f"On day {n} the old sailor saw {n * 7 % 90} quiet boats and the shiny sun.\n" for n in range(400)]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    (folder / "story.txt").write_text("".join(LINES))
    (folder / "bad.yaml").write_text("kind: syllables")
    (folder / "story.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return folder


def run(*words) -> None:
    recipe.main([str(word) for word in ("--vocab-size", 300, "--compare", "none", *words)])


@pytest.fixture
def folder(tmp_path, story):
    run(*options(story, tmp_path / "tokenizer"))
    return tmp_path / "tokenizer"


def options(story, folder) -> tuple:
    return "--dataset", story / "story.txt", "--output-dir", folder, "--special-tokens", "<|user|>, [SEP]"


def test_the_tokenizer_folder_loads_in_stock_transformers_and_in_pretrain(folder, story, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert decode(tokenizer, encode(tokenizer, LINES[0])) == LINES[0] and len(tokenizer) == 300
    assert {"<|user|>", "[SEP]"} < set(tokenizer.all_special_tokens)
    report = json.loads((folder / "report.json").read_text())
    assert report["fingerprint"] == fingerprint(tokenizer)
    assert report["round_trip_failures"] == 0 and report["peers"] == {} and report["bytes_per_token"] > 2
    assert report["bytes_seen"] == report["bytes_used"] == len("".join(LINES)) - report["bytes"]
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]

    words = ["--dataset", story / "story.txt", "--tokenizer", folder, "--output-dir", tmp_path / "run"]
    words += ["--preset", "tiny", "--max-length", 32, "--max-steps", 1, "--device", "cpu", "--config-overrides"]
    pretrain.main([*map(str, words), "hidden_size=32,num_hidden_layers=2"])
    assert fingerprint(AutoTokenizer.from_pretrained(tmp_path / "run" / "model")) == report["fingerprint"]


def test_the_output_names_the_vocabulary_size_and_the_next_command(story, tmp_path, capsys):
    capsys.readouterr()
    words = ["--dataset", story / "story.txt", "--output-dir", tmp_path / "t", "--compare", tmp_path, "--kind", "word"]
    run(*words, "--vocab-size", 5000)
    said = capsys.readouterr().out
    assert "No comparison" in said and "could not be loaded" in said
    assert re.search(r"Tokenizer: word, \d+ tokens instead of 5,000 \(the text yields no more\), ", said)
    assert f"--tokenizer {tmp_path / 't'}" in said


def test_a_stream_is_sampled_and_compared_with_another_tokenizer(folder, story, tmp_path):
    words = ["--dataset", story / "story.jsonl", "--streaming", "true", "--sample-megabytes", 0.005]
    run(*words, "--output-dir", tmp_path / "streamed", "--compare", folder, "--chat-template", "chatml")
    report = json.loads((tmp_path / "streamed" / "report.json").read_text())
    assert 4000 < report["bytes_used"] <= 5000 < report["bytes_seen"]
    assert report["bytes_seen"] + report["bytes"] == len("".join(LINES))
    assert list(report["peers"]) == [str(folder)] and report["peers"][str(folder)] > 2
    assert "im_end" in AutoTokenizer.from_pretrained(tmp_path / "streamed").chat_template


def test_marks_and_characters_are_reported(tmp_path, capsys):
    words = "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e"
    (tmp_path / "hindi.txt").write_text(f"{words} 2026\n" * 300, encoding="utf-8")
    reports = {}
    for name in ("gpt2", "qwen35"):
        capsys.readouterr()
        run("--dataset", tmp_path / "hindi.txt", "--output-dir", tmp_path / name, "--pre-tokenizer", name)
        report = reports[name] = json.loads((tmp_path / name / "report.json").read_text())
        assert report["characters_per_token"] * report["tokens"] == pytest.approx(report["characters"])
        assert report["mark_share"] == pytest.approx(5 / 17)
        said = capsys.readouterr().out
        assert f"{report['characters_per_token']:.2f} characters or {report['bytes_per_token']:.2f} bytes per" in said
        assert ("29.4 % of the text's characters are combining marks" in said) == (name == "gpt2")
    assert reports["qwen35"]["characters_per_token"] > reports["gpt2"]["characters_per_token"]


def test_repeated_runs_are_byte_for_byte_equal(folder, story):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    run(*options(story, folder), "--overwrite", "true")
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    first, second = (json.loads(files.pop("report.json")) for files in (before, after))
    assert after == before
    assert second["run"].pop("overwrite") and not first["run"].pop("overwrite") and first == second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "syllables"], "--kind 'syllables' is not one of: bpe, wordpiece"),
        (["--vocab-size", "100"], "--vocab-size 100 is too small"),
        (["--vocab-size", "many"], "many"),
        (["--vocab-siz", "300"], "Did you mean --vocab-size"),
        (["--min-frequency", "0"], "--min-frequency must be at least"),
        (["--held-out-fraction", "1"], "--held-out-fraction must be between 0 and 1"),
        (["--held-out-fraction", "nan"], "--held-out-fraction must be between 0 and 1"),
        (["--sample-megabytes", "0"], "--sample-megabytes must be at least"),
        (["--special-tokens", "user"], "brackets"),
        (["--chat-template", "absent.jinja"], "absent.jinja cannot be read"),
        (["--text-column", "body"], "no column 'body'"),
        (["--dataset", "absent.txt"], "no such file"),
        (["--output-dir", ""], "--output-dir is empty"),
        (["--config", "{story}/bad.yaml"], "kind must be one of bpe, wordpiece, unigram, word, char, not 'syllables'"),
        (["--output-dir", "{story}"], "not written by this recipe"),
        (["--output-dir", "{story}/story.txt/tokenizer"], "is a file"),
        (["--output-dir", "{folder}"], "already contains a tokenizer"),
        (["--output-dir", "{folder}", "--overwrite", "true", "--compare", "{folder}"], "would remove the compare"),
    ],
)
def test_bad_input_is_a_one_line_error_and_nothing_is_written(words, message, folder, story, tmp_path, capsys):
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    words = [word.format(story=story, folder=folder) for word in words]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        run("--dataset", story / "story.txt", "--output-dir", tmp_path / "new", *words)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ending.value.code == 2 and len(said) == 1 and message in said[0], said
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_save_that_fails_leaves_the_old_tokenizer(folder, story, monkeypatch, capsys):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scratch_gpt.runs.folder.replace_folder", fail)
    with pytest.raises(SystemExit) as ending:
        run("--dataset", story / "story.txt", "--output-dir", folder, "--overwrite", "true")
    assert ending.value.code == 2 and "No space left" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]
