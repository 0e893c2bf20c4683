"""Test files: a text is replaced completely or not at all, and links are not followed."""

import os

import pytest

from scratch_gpt.utils.files import remove, write_text


def test_a_text_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_text(file, "old")
    monkeypatch.setattr(os, "replace", None)  # fails just before the rename
    with pytest.raises(TypeError):
        write_text(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_link_is_removed_and_its_target_is_kept(tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "file").write_text("mine")
    for target in ("far", "far/file", "nowhere"):
        (tmp_path / "link").symlink_to(tmp_path / target)
        remove(tmp_path / "link")
        assert not os.path.lexists(tmp_path / "link") and (tmp_path / "far" / "file").exists()
    remove(tmp_path / "far")
    remove(tmp_path / "far")
    assert not (tmp_path / "far").exists()
