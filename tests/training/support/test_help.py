"""Test help: --help explains the common options, and --help-all all of them."""

import inspect
import re
import sys
from dataclasses import fields

import pytest
from recipe_options import KINDS

from scratch_gpt_training.support import command_line, help


def printed(name, word, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        command_line.parse(KINDS[name], [word])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", KINDS)
def test_help_all_explains_every_option_once_in_its_group(name, capsys):
    groups = help.group_fields(KINDS[name])
    assert sorted(sum(groups.values(), [])) == sorted(item.name for item in fields(KINDS[name]))
    text = printed(name, "--help-all", capsys)
    positions = [text.index(f"\n{title}:\n") for title in groups]
    for start, end, names in zip(positions, [*positions[1:], len(text)], groups.values(), strict=True):
        flags = re.findall(r"^  --([\w-]+)", text[start:end], re.MULTILINE)
        assert [flag for flag in flags if flag not in ("config", "help-all")] == [n.replace("_", "-") for n in names]
    assert "None" not in text


@pytest.mark.parametrize("name", KINDS)
def test_help_explains_the_common_options_and_names_the_others(name, capsys):
    text = printed(name, "--help", capsys)
    most_used = text.split("Most used:\n")[1].split("\n\n")[0]
    explained = re.findall(r"^  --([\w-]+)", most_used, re.MULTILINE)
    assert 5 <= len(explained) <= 16 and "None" not in text
    flags = re.findall(r"(?<=[ \n])--([\w-]+)", text[text.index("Most used:") :])
    assert {*(item.name.replace("_", "-") for item in fields(KINDS[name]))} <= {*flags}
    description = inspect.cleandoc(sys.modules[KINDS[name].__module__].__doc__)
    assert description.split("\n\n")[0] in text


def test_a_training_recipe_has_the_shared_groups_and_its_own():
    shared = ["Data source", "Splits, tokenizer and rows", "Model and fine-tuning", "Optimization"]
    shared += ["Evaluation and output", "Launch"]
    for name, own in {"pretrain": "Pretraining", "classify": "Classification", "prefer": "Preference tuning"}.items():
        assert [*help.group_fields(KINDS[name])] == [*shared, own]
