"""Test the names of commands."""

import sys

import pytest

from scratch_gpt_training import pretrain
from scratch_gpt_training.support import commands


@pytest.mark.parametrize(
    ("started", "spelled"),
    [
        ("training/pretrain.py", "python training/publish.py RUN"),
        ("pretrain.py", "python publish.py RUN"),
        ("../clone/training/pretrain.py", "python ../clone/training/publish.py RUN"),
        ("{here}/training/pretrain.py", "python training/publish.py RUN"),
        ("/opt/my clone/training/pretrain.py", "python '/opt/my clone/training/publish.py' RUN"),
        ("/usr/bin/pytest", "python training/publish.py RUN"),
    ],
)
def test_a_script_names_other_scripts_by_their_path(started, spelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [started.format(here=tmp_path)])
    assert commands.command("publish RUN") == spelled
    assert "training/pretrain.py" in commands.spell_commands(pretrain.__doc__)
