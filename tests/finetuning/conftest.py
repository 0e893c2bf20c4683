"""Fixtures of the tests of fine-tuning."""

import pytest
from tiny import tiny_model


@pytest.fixture
def base(tmp_path, monkeypatch) -> str:
    """A saved tiny model, named as seen from the working folder."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("base")
    return "base"
