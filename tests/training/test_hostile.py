"""Test invalid and hostile input: one clear line and exit code 2, whatever a library raises."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from bad_input import fails
from hostile import LOST, RECOVERED, REFUSED, SLOTS, SPOILERS, attempt, attempts, furnish, outcome
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from scratch_gpt.conversion.load import load_model
from scratch_gpt.data.filters.quality import blocked_term, load_block_list
from scratch_gpt.data.prepared.storage import PreparedRows
from scratch_gpt.data.sources.documents import open_column
from scratch_gpt.finetuning.adapter_files import load_adapted
from scratch_gpt.tokenization.chat_templates import TRIAL, render_text
from scratch_gpt.tokenization.tokenizer import encode, load_tokenizer
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt.train.checkpoints import find_checkpoint
from scratch_gpt.utils.foreign import FileChanged, check_text, one_error, read_json, shown, time_limit
from scratch_gpt.utils.loading import load_complete
from scratch_gpt_training import evaluate, generate, pretrain
from scratch_gpt_training.support import options as recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    furnish(folder)
    return folder


# --- Every recipe, every kind of bad file ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({slot.recipe for slot in SLOTS}))
def test_a_recipe_refuses_every_kind_of_bad_file_in_one_line(name, home, tmp_path):
    found = [(slot.file, kind, *attempt(home, tmp_path, slot, kind)) for slot, kind in attempts(name)]
    assert not [each for each in found if each[2] == LOST]
    assert {kind for _, kind, *_ in found} == {*SPOILERS}
    assert {slot.file for slot in SLOTS if slot.recipe == name} == {file for file, *_ in found}
    assert sum(how == REFUSED for _, _, how, _ in found) >= len(found) / 2


def test_hostile_inputs_cover_every_recipe():
    here = Path(pretrain.__file__).parent
    names = {file.stem for file in here.glob("[!_]*.py")}
    assert names == {slot.recipe for slot in SLOTS}


# --- Errors of libraries -----------------------------------------------------------------------------------------


class Panic(BaseException):
    """Like pyo3's PanicException, not a subclass of Exception."""


@pytest.mark.parametrize("error", [Panic("at the\ndisco"), Exception("bare"), RecursionError("deep"), KeyError("x")])
def test_any_exception_becomes_one_value_error(error):
    with (
        pytest.raises(ValueError, match=r"^a\.json cannot be read: [^\n]+$") as caught,
        one_error("a.json cannot be read"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exceptions_that_end_a_program_are_not_caught(error):
    with pytest.raises(error), one_error("a"):
        raise error


def test_endless_work_is_stopped_and_an_outer_limit_still_applies():
    began = time.monotonic()
    with pytest.raises(ValueError, match="the outer takes longer"), time_limit(0.4, "the outer"):
        with pytest.raises(ValueError, match="the inner takes longer than 0.1 seconds"), time_limit(0.1, "the inner"):
            re.search("(a+)+b", "a" * 40)
        while True:
            pass
    assert time.monotonic() - began < 5
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_json_of_another_kind_and_of_any_depth(tmp_path):
    file = tmp_path / "a.json"
    for text in ("[]", "7", "null", '"a"', "[" * 100_000, '{"a":' * 100_000, "", "{", "\ufeff{}", "9" * 5000):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"a\.json cannot be read: ."):
            read_json(file)
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(tmp_path / "pipe")


# --- Tokenizers and templates ------------------------------------------------------------------------------------


def _with_tokenizer(home: Path, folder: Path, **changes) -> Path:
    shutil.copytree(home / "chat", folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return folder


TOKENIZERS = {
    "panics at a charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "panics at an empty pattern": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}},
    "raises a bare Exception": {"model": {"type": "WordLevel", "unk_token": "no", "vocab": {"a": 0}}},
    "has a bad pattern": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    },
}


@pytest.mark.parametrize("changes", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_fails_is_a_one_line_error(changes, home, tmp_path, capfd):
    folder = _with_tokenizer(home, tmp_path / "bad", **changes)
    with pytest.raises(ValueError, match=r"^No tokenizer could be loaded from .*bad': [^\n]+$"):
        load_tokenizer(folder)
        encode(load_tokenizer(folder), "The sun")
    assert "panicked" not in capfd.readouterr().err


def test_a_lone_surrogate_is_named(home):
    with pytest.raises(ValueError, match=r"not valid Unicode at 'the sun \\ud83d shines'"):
        encode(load_tokenizer(home / "chat"), "the sun \ud83d shines")
    with pytest.raises(ValueError, match=r"^prompt is not valid Unicode"):
        check_text("caf\udce9", "prompt")


TEMPLATES = {
    "raise_exception": "{{ raise_exception('Roles must alternate') }}",
    "a syntax error": "{% for %}",
    "an unclosed block": "{% if true %}",
    "an unknown tag": "{% nothing %}",
    "an unknown filter": "{{ messages | nothing }}",
    "an undefined name": "{{ nothing.more }}",
    "an index": "{{ messages[9]['content'] }}",
    "a division": "{{ 1 // 0 }}",
    "a sum of kinds": "{{ 1 + 'a' }}",
    "a call": "{{ messages() }}",
    "a recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "an escape": "{{ ''.__class__.__mro__ }}",
    "an include": "{% include 'a' %}",
    "a range": "{% for k in range(10**9) %}{% endfor %}",
    "no end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_fails_is_a_one_line_error(template, home, tmp_path, monkeypatch):
    monkeypatch.setattr("scratch_gpt.tokenization.chat_templates.RENDER_SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"^The chat template does not render a conversation: [^\n]+$"):
        render_text(template, TRIAL, {})
    shutil.copytree(home / "chat", tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text(template)
    how, said = outcome("generate", [tmp_path / "chat", "--chat"], "Well?\n/exit\n")
    assert how == REFUSED and "does not render a conversation" in said and "/exit quits" not in said


# --- Models and adapters -----------------------------------------------------------------------------------------


def test_an_adapter_whose_fields_are_of_another_kind_is_a_one_line_error(home, tmp_path):
    fields = json.loads((home / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    bad = tmp_path / "adapter"
    shutil.copytree(home / "adapter", bad)
    found = {}
    for name in fields:
        for value in ([], -7):
            (bad / "adapter_config.json").write_text(json.dumps({**fields, name: value}), encoding="utf-8")
            found[name, str(value)] = outcome("generate", [bad, "the", "--max-new-tokens", "1"])
    assert not {key: said for key, (how, said) in found.items() if how == LOST}
    assert found["base_model_name_or_path", "-7"][0] == found["peft_type", "-7"][0] == REFUSED


def test_an_adapter_that_is_its_own_base_is_a_one_line_error(home, tmp_path):
    for name, base in (("one", "other"), ("other", "one"), ("self", "self")):
        shutil.copytree(home / "adapter", tmp_path / name)
        file = tmp_path / name / "adapter_config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**content, "base_model_name_or_path": str(tmp_path / base)}), encoding="utf-8")
    for name in ("self", "one"):
        with pytest.raises(ValueError, match="it is its own base"):
            load_model(str(tmp_path / name))
    assert load_adapted(str(home / "chat"), lambda name, revision: name) == str(home / "chat")


def test_weights_that_are_not_finite_are_found_when_they_are_loaded(home, tmp_path, capsys):
    shutil.copytree(home / "chat", tmp_path / "nan")
    file = tmp_path / "nan" / "model.safetensors"
    for value in (torch.nan, torch.inf):
        weights = load_file(file)
        weights["transformer.layers.1.mlp.up_proj.bias"][3] = value
        save_file(weights, file, metadata={"format": "pt"})
        fails(
            [tmp_path / "nan", "the"],
            r"layers\.1\.mlp\.up_proj\.bias has numbers that are not finite",
            capsys,
            generate.main,
        )
        assert capsys.readouterr().out == ""


def test_absurd_sizes_of_a_saved_config_are_one_line_errors(home, tmp_path):
    shutil.copytree(home / "chat", tmp_path / "big")
    content = json.loads((tmp_path / "big" / "config.json").read_text(encoding="utf-8"))
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "intermediate_size"):
        (tmp_path / "big" / "config.json").write_text(json.dumps({**content, name: 10**9}), encoding="utf-8")
        with pytest.raises(ValueError, match=f"config.json has {name} 1000000000; at most"):
            load_complete(type(tiny_model()), tmp_path / "big")


# --- Numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(recipe.OPTION_LIMITS))
def test_each_bound_holds_on_both_sides(name):
    least, most = recipe.OPTION_LIMITS[name]
    recipe.check_range(name, least, least, most)
    recipe.check_range(name, most, least, most)
    recipe.check_range(name, None, least, most)
    for value, message in ((least - 1, "at least"), (most * 2 + 1, "at most"), (float("nan"), "at least")):
        with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} must be {message} "):
            recipe.check_range(name, value, least, most)


@pytest.mark.parametrize(
    ("overrides", "plan"),  # a plan may be for another machine, but a small model of that width must fit
    [
        ("hidden_size=100000000", "false"),
        ("hidden_size=100000000", "true"),
        ("num_hidden_layers=1000000000", "false"),
        ("intermediate_size=1e14", "false"),
    ],
)
def test_a_model_larger_than_the_machine_is_refused_before_it_is_made(overrides, plan, home, tmp_path):
    words = ["--dataset", home / "data.txt", "--output-dir", tmp_path / "run", "--vocab-size", "300", "--plan", plan]
    words += ["--max-length", "16", "--max-steps", "1", "--device", "cpu", "--config-overrides"]
    how, said = outcome("pretrain", [*words, f"{overrides},num_attention_heads=1"])
    assert how == REFUSED and ("GB of memory, and" in said or "intermediate" in overrides), said
    assert not (tmp_path / "run").exists()


def test_impossible_options_are_refused_before_loading(home, capsys, monkeypatch):
    monkeypatch.setattr(generate, "load_language_model", lambda *_: pytest.fail("loaded"))
    for words, message in (
        (["the", "--top-k", "-1"], "--top-k must be at least 0"),
        (["the", "--top-k", "9e9"], "--top-k must be a whole number"),
        (["the", "--top-p", "0"], "--top-p must be above 0"),
        (["the", "--top-p", "1.5"], "--top-p must be at most 1"),
        (["FILE:/no/where"], "/no/where cannot be read"),
        (["caf\udce9"], "prompt is not valid Unicode"),
    ):
        fails([home / "chat", *words], message, capsys, generate.main)
        assert capsys.readouterr().out == ""


# --- Data --------------------------------------------------------------------------------------------------------


def test_json_nested_deeper_than_pyarrow_can_take_is_a_one_line_error(tmp_path):
    for depth, message in ((500, "nested more than 64 levels"), (100_000, "nested too deeply")):
        file = tmp_path / f"{depth}.jsonl"
        file.write_text('{"text": "a"}\n{"text": "b", "more": ' + "[" * depth + "]" * depth + "}\n")
        with pytest.raises(ValueError, match=rf"{depth}\.jsonl cannot be read as json: line 2: it is {message}"):
            open_column(str(file))
    (tmp_path / "flat.jsonl").write_text('{"text": "' + "[" * 500 + '"}\n')
    assert open_column(str(tmp_path / "flat.jsonl")).rows[0]["text"] == "[" * 500


def test_file_names_that_are_not_utf8_are_read_and_shown_with_escapes(home, tmp_path):
    raw = os.fsencode(tmp_path) + b"/data\xe9\x1b[31m"
    os.mkdir(raw)
    shutil.copy(home / "data.txt", raw + b"/caf\xe9\x1b]0;title\x07.txt")
    source = open_column(os.fsdecode(raw))
    assert [file["name"] for file in source.record["files"]] == ["caf\\udce9\\x1b]0;title\\x07.txt"]
    words = "--config-overrides hidden_size=32,num_hidden_layers=1 --vocab-size 300 --max-length 16 --max-steps 1"
    words = ["--dataset", os.fsdecode(raw), *words.split(), "--device", "cpu", "--output-dir"]
    how, said = outcome("pretrain", [*words, tmp_path / "run"])
    assert how == RECOVERED and "\x1b[31m" not in said and "\udce9" not in said, said
    how, said = outcome("pretrain", [*words, os.fsdecode(raw) + "-run"])
    assert how == REFUSED and r"data\udce9\x1b[31m-run is not UTF-8" in said


def test_a_prepared_part_that_is_truncated_while_it_is_mapped_is_one_error(home, tmp_path):
    shutil.copytree(home / "prepared", tmp_path / "prepared")
    rows = PreparedRows(tmp_path / "prepared" / "train")
    assert len(rows[len(rows) - 1]["input_ids"])
    part = next((tmp_path / "prepared" / "train").glob("part-*.arrow"))
    os.truncate(part, 100)
    with pytest.raises(FileChanged, match="became shorter while it was in use"):
        rows[len(rows) - 1]
    part.unlink()
    with pytest.raises(FileChanged):
        rows[0]


def test_a_pattern_of_a_block_list_that_explodes_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("scratch_gpt.data.filters.quality.MATCH_SECONDS", 0.2)
    (tmp_path / "words.txt").write_text("/(a+)+b/\nsea\n")
    patterns = load_block_list(tmp_path / "words.txt")
    assert blocked_term("the Sea", patterns) == "Sea"
    with pytest.raises(ValueError, match=r"/\(a\+\)\+b/ of the block list in one text takes longer than 0\.2 seconds"):
        blocked_term("a" * 40, patterns)


def test_a_nested_manifest_falls_back_to_the_older_checkpoint(home, tmp_path):
    for step in (1, 2):
        shutil.copytree(home / "run" / "checkpoints" / "step-1", tmp_path / f"step-{step}")
    for content in (b"[" * 100_000, b"[]", b"7", b"\xff"):
        (tmp_path / "step-2" / "manifest.json").write_bytes(content)
        found, skipped = find_checkpoint(tmp_path)
        assert found == tmp_path / "step-1" and skipped == [
            "step-2 is damaged and skipped: manifest.json cannot be read"
        ]


def test_a_tokenizer_of_an_absurd_size_is_refused_before_it_is_trained(home, tmp_path):
    words = ["--dataset", home / "data.txt", "--output-dir", tmp_path / "out", "--compare", "none", "--vocab-size"]
    for size in ("1000000000000", str(2**24 + 1)):
        how, said = outcome("train_tokenizer", [*words, size])
        assert how == REFUSED and "at most 16,777,216" in said
        with pytest.raises(ValueError, match="at most 16,777,216"):
            train_tokenizer(["the sun"], vocab_size=int(size))


def test_a_config_whose_aliases_multiply_is_a_one_line_error(tmp_path, capsys):
    bomb = "&a0 [x, x, x, x, x, x, x, x, x]"
    for n in range(12):  # 9 ** 13 words if it were printed
        bomb = f"&a{n + 1} [{bomb}, {', '.join([f'*a{n}'] * 8)}]"
    for field, main in (("seed", pretrain.main), ("multiple_choice", evaluate.main)):
        (tmp_path / "config.yaml").write_text(f"{field}: {bomb}\n")
        fails(["--config", tmp_path / "config.yaml"], f"{field} is .*; it must be a", capsys, main)


# --- The terminal ------------------------------------------------------------------------------------------------


def test_control_characters_are_escaped():
    assert shown("a\tb\nc\u00e9\U0001f600") == "a\tb\nc\u00e9\U0001f600"
    assert shown("\x00\x07\x1b]52;c;aGk=\x07\x7f\x9b31m") == "\\x00\\x07\\x1b]52;c;aGk=\\x07\\x7f\\x9b31m"
    assert shown("\r\u202eevil\u2066 \udce9") == "\\r\\u202eevil\\u2066 \\udce9"


def test_texts_and_answers_are_printed_without_control_characters(home, tmp_path):
    (tmp_path / "prompt.txt").write_text("the \x1b]0;title\x07 sun\x00")
    for samples in ("1", "2"):
        words = [home / "chat", f"FILE:{tmp_path / 'prompt.txt'}", "--max-new-tokens", "60", "--samples", samples]
        how, said = outcome("generate", [*words, "--temperature", "30", "--top-k", "0"])
        assert how == RECOVERED and r"the \x1b]0;title\x07 sun\x00" in said
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", said)  # a progress bar writes \r


def test_an_error_line_holds_no_control_characters(capsys, tmp_path):
    fails(["--dataset", "/no/\x1b[31mwhere.txt", "--output-dir", tmp_path], r"/no/\\x1b\[31mwhere\.txt", capsys)
