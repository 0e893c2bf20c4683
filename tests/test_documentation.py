"""Check the project's own files: each names only what exists, and a fact stands in one place."""

import re
import tomllib
from pathlib import Path

import scratch_gpt


REPO = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())


def test_the_package_alone_states_the_version():
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "scratch_gpt.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", scratch_gpt.__version__)
