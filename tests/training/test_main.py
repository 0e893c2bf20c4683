"""Test the command: its verbs, the options of the launcher, and the commands that it names."""

import runpy
import sys
from dataclasses import fields

import pytest
from accelerate.commands.launch import launch_command_parser
from bad_input import fails
from places import REPO

from scratch_gpt_training import __main__ as command
from scratch_gpt_training import classify, generate, instruct, prefer, pretrain
from scratch_gpt_training.support import commands
from scratch_gpt_training.support.command_line import parse


OWN = {item.name for item in fields(pretrain.PretrainRun)}


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """Undo the changes of the command to its process after each test."""
    monkeypatch.setenv(commands.VARIABLE, "")
    monkeypatch.delenv(commands.VARIABLE)
    monkeypatch.setattr(sys, "argv", ["scratch-gpt"])


def split(*words: str) -> tuple[list[str], list[str]]:
    return command.split_options(words, OWN, launch_command_parser())


def test_every_recipe_has_a_verb_and_those_that_train_name_their_options(capsys):
    assert {verb.module for verb in commands.VERBS.values()} == {
        file.stem for file in (REPO / "training").glob("[!_]*.py")
    }
    classes = {verb.options for verb in commands.VERBS.values()} - {None}
    kinds = pretrain.PretrainRun, classify.ClassifyRun, instruct.InstructRun, prefer.PreferRun
    assert classes == {kind.__name__ for kind in kinds}
    command.main(["--help"])
    words = capsys.readouterr().out.split()
    assert {*commands.VERBS, "look-inside"} <= {*words}


def test_a_recipe_runs_in_this_process_with_its_options(monkeypatch):
    calls = []
    monkeypatch.setattr(pretrain, "main", calls.append)
    monkeypatch.setattr(generate, "main", calls.append)
    command.main(["pretrain", "--learning-rate", "1e-3", "--config=python_docs", "--mixed_precision", "no"])
    command.main(["chat", "runs/mine/model"])
    assert calls == [
        ["--learning-rate", "1e-3", "--config=python_docs", "--mixed_precision", "no"],
        ["runs/mine/model", "--chat"],
    ]


def test_an_unknown_verb_or_option_is_a_one_line_error(capsys):
    fails(["pretrian"], "Did you mean pretrain?", capsys, command.main)
    fails(["xyz"], "The verbs are pretrain, tokenizer", capsys, command.main)
    fails(["pretrain", "--nonsense", "1"], "Unknown option --nonsense", capsys, command.main)
    fails(["generate", "--num_processes", "2"], "Unknown option --num_processes", capsys, command.main)
    fails(["pretrain", "--accelerate_config", "cpu_9"], "cpu_9.*not one of cpu_1, cpu_2", capsys, command.main)
    fails(["pretrain", "--num_processes", "two"], "num_processes.*invalid int value: 'two'", capsys, command.main)


@pytest.mark.parametrize(
    ("words", "theirs"),
    [
        (["--num_processes", "2"], ["--num_processes", "2"]),
        (["--num-processes=2", "--multi_gpu"], ["--num-processes=2", "--multi_gpu"]),
        (["--config_file", "mine.yaml"], ["--config_file", "mine.yaml"]),
        (["--main_process_port", "0", "--cpu"], ["--main_process_port", "0", "--cpu"]),
        (["--mixed_precision", "no"], []),  # also an option of the recipe
        (["--module"], []),  # would start another program
    ],
)
def test_options_of_the_launcher_are_separated_from_those_of_the_recipe(words, theirs):
    own = ["--dataset", "my.txt", "--overwrite", "--max-steps=3"]
    rest = [] if theirs else words
    assert split(*own[:2], *words, *own[2:]) == (theirs, [*own[:2], *rest, *own[2:]])


def test_a_launch_file_is_a_path_or_the_name_of_a_shipped_file(tmp_path, monkeypatch):
    file = REPO / "training" / "configs" / "accelerate" / "cpu_2.yaml"
    assert split("--accelerate_config", "cpu_2")[0] == ["--config_file", str(file)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu_2").touch()
    assert split("--accelerate-config=cpu_2")[0] == ["--config_file", "cpu_2"]


def test_a_config_is_a_path_or_the_name_of_a_shipped_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert parse(pretrain.PretrainRun, ["--config", "python_docs"]).vocab_size == 2048
    fails(["--config", "python_doc"], "--config python_doc cannot be read", capsys)
    (tmp_path / "python_docs").write_text("seed: 3")
    assert parse(pretrain.PretrainRun, ["--config", "python_docs"]).seed == 3


def test_a_launched_recipe_ends_with_its_exit_code(tmp_path, capfd):
    words = ["pretrain", "--accelerate_config", "cpu_1", "--preset", "nope", "--output-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ending:
        command.main(words)
    assert ending.value.code == 2 and "error: Unknown preset 'nope'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("started", "spelled"),
    [("/usr/bin/scratch-gpt", "scratch-gpt"), ("training/__main__.py", "python -m scratch_gpt_training")],
)
def test_the_command_names_itself(started, spelled, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [started])
    command.main([])
    assert commands.command("tokenizer --kind char") == f"{spelled} tokenizer --kind char"
    with pytest.raises(SystemExit):
        command.main(["pretrain", "--help"])
    text = capsys.readouterr().out
    assert f"usage: {spelled} pretrain" in text and f"{spelled} pretrain [--config" in text and "training/" not in text


def test_the_page_is_the_app_of_the_space(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(runpy, "run_path", lambda path, run_name: calls.append((path, run_name, sys.argv[1:])))
    command.main(["look-inside", "runs/mine/model"])
    assert calls == [(str(REPO / "hub_card" / "space" / "app.py"), "__main__", ["runs/mine/model"])]
