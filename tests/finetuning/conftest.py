"""Fixtures for the tests of fine-tuning."""

import pytest
from tiny import tiny_model


@pytest.fixture
def base(tmp_path, monkeypatch) -> str:
    """Save a tiny model; return its path relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("base")
    return "base"
