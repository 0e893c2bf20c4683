"""Test the words of other tools: those with the same meaning are accepted, close ones name our option."""

import re
from dataclasses import fields

import pytest
from recipe_options import KINDS

from scratch_gpt_training.support import command_line
from scratch_gpt_training.support.words import CHOICE_HINTS, HINTS, SYNONYMS


ALL = {item.name for kind in KINDS.values() for item in fields(kind)}


def test_every_target_is_a_field_of_a_recipe_and_no_word_is_one():
    assert {field for field, _ in SYNONYMS.values()} | {field for field, _ in HINTS.values() if field} <= ALL
    assert not {*SYNONYMS} & {*HINTS}
    assert {word for word in (*SYNONYMS, *HINTS) if word in ALL} <= {"dtype"}  # an option of generate
    assert {field for field, _ in CHOICE_HINTS} <= ALL


def test_every_hint_names_options_that_exist():
    for word, (_, text) in HINTS.items():
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][\w-]+)", text)}
        assert flags - {"use_fsdp", "fsdp_version", "predict"} <= ALL, word


@pytest.mark.parametrize("word", SYNONYMS)
def test_an_alias_sets_our_field(word, tmp_path, capsys):
    field = SYNONYMS[word][0]
    name = next(name for name, kind in KINDS.items() if field in {item.name for item in fields(kind)})
    (item,) = (item for item in fields(KINDS[name]) if item.name == field)
    value = "true" if "bool" in str(item.type) else "2"
    expected = getattr(command_line.parse(KINDS[name], [f"--{field}", value]), field)
    for words in ([f"--{word}", value], [f"--{word.replace('_', '-')}={value}"]):
        capsys.readouterr()
        assert getattr(command_line.parse(KINDS[name], words), field) == expected
        shown = capsys.readouterr().err
        assert shown == f"--{word.replace('_', '-')} is --{field.replace('_', '-')} here.\n"
    file = tmp_path / "run.yaml"
    file.write_text(f"{word}: {value}\n")
    assert getattr(command_line.parse(KINDS[name], ["--config", str(file)]), field) == expected
    with pytest.raises(ValueError, match="same option"):
        command_line.parse(KINDS[name], [f"--{word}", value, f"--{field}", value])
    file.write_text(f"{word}: {value}\n{field}: {value}\n")
    with pytest.raises(ValueError, match="same field"):
        command_line.parse(KINDS[name], ["--config", str(file)])


@pytest.mark.parametrize("word", HINTS)
def test_a_close_word_names_our_option(word, tmp_path):
    field, text = HINTS[word]
    name = next(name for name, kind in KINDS.items() if field is None or field in {item.name for item in fields(kind)})
    with pytest.raises(ValueError, match=re.escape(text)):
        command_line.parse(KINDS[name], [f"--{word}", "1"])
    (tmp_path / "run.yaml").write_text(f"{word}: 1\n")
    with pytest.raises(ValueError, match=re.escape(text)):
        command_line.parse(KINDS[name], ["--config", str(tmp_path / "run.yaml")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--loss-type sigmoid",
            "--loss-type 'sigmoid' is not one of: dpo, ipo, kto, orpo, simpo. TRL's sigmoid",
        ),
        ("--max-steps many", "--max-steps must be a whole number (you gave 'many')."),
        ("--learning-rate high", "--learning-rate must be a number (you gave 'high')."),
        ("--overwrite perhaps", "--overwrite must be true or false (you gave perhaps)."),
        ("--push-to-hub", "--push-to-hub needs a value: --push-to-hub user/name."),
        ("--zebra 3", "Unknown option --zebra. --help-all lists all."),
        ("--train.max_steps 3", "Unknown option --train.max_steps. Did you mean --max-steps?"),
        ("--train.max_norm 1", "Unknown option --train.max_norm. Did you mean --max-grad-norm?"),
    ],
)
def test_a_wrong_option_or_value_says_what_is_allowed(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        command_line.parse(KINDS["prefer"], words.split())
