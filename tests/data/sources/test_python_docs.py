"""Test the embedded default: English prose without a download."""

import pytest

from scratch_gpt.data.sources.documents import open_documents


def test_the_embedded_default_is_english_prose_without_a_download():
    documents = open_documents().rows
    size = sum(len(text.encode()) for text in documents["text"])
    assert len(documents) > 300 and size > 1_000_000
    assert any("iterable" in text for text in documents["text"][:])


def test_a_python_without_sources_asks_for_a_dataset(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="Give another dataset"):
        open_documents()
