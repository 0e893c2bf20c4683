"""Test the manifest: a change is detected, and older versions are read."""

import json
from contextlib import suppress

import pytest

from scratch_gpt.data.manifest import changed_file, make_manifest, manifest_text, read_manifest


@pytest.fixture
def manifest():
    facts = {"documents": 2, "bytes": 90, "rows": 3, "tokens": 48, "asked": 48, "share": 0.9, "sha256": "ab"}
    how = {"max_length": 16, "stride": 16, "pack": False, "pad": False, "tokenizer": {"fingerprint": "cd"}}
    mixture = {"asked": None, "actual": {"a": 0.25, "\u00e9": 0.75}}
    files = [{"name": "train/part-00000.arrow", "bytes": 7, "sha256": "ef"}]
    return make_manifest("pretrain", [], {"train": facts}, {"empty": {"in": 3, "removed": 1}}, mixture, files, **how)


def test_a_changed_byte_of_a_manifest_is_detected_or_has_no_effect(manifest, tmp_path):
    content = manifest_text(manifest).encode()
    file = tmp_path / "manifest.json"
    file.write_bytes(content)
    assert read_manifest(file) == manifest
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        with suppress(ValueError):
            assert read_manifest(file) == manifest and content[place : place + 1] in b" \n", place


def test_a_manifest_of_an_older_version_has_no_hash_and_is_read(manifest, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(tmp_path) == manifest


def test_a_changed_file_is_distinguished_from_another_of_the_same_name():
    def source(name: str, content: str) -> dict:
        return {"name": name, "dataset": name, "files": [{"name": "a.jsonl", "bytes": 1, "sha256": content}]}

    recorded = [source("large", "x"), source("small", "y")]
    assert changed_file(recorded, [source("large", "z"), source("small", "y")]) == "a.jsonl has changed"
    assert changed_file(recorded, [source("small", "y"), source("large", "x")]) is None
    assert changed_file(recorded, [source("moved", "x"), source("small", "y")]) is None
    assert changed_file(recorded, [source("moved", "x"), source("small", "z")]) == "a.jsonl has changed"
    assert changed_file(recorded, recorded[:1]) == "a.jsonl is missing"
    assert changed_file(recorded[:1], recorded) == "a.jsonl is new"
