"""Test local files: the record lists the files that were read, with any names."""

import gzip
import hashlib
import json
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.sources import documents
from scratch_gpt.data.sources.documents import open_documents
from scratch_gpt.data.sources.streaming import open_stream
from scratch_gpt.utils.local_files import LocalFile, find_files, read_text_file


ODD = ["data[1]", "b [2]", "a?", "[!a]", "a*b", "{a,b}", "a#b", "100%25", "a::b", "~me", "a;b", "it's", '"q"', "a`b"]
ODD += ["\u00e4\u00f6\u00fc", "\U0001f600", "-x", "--help", "a\nb", "a\tb", "hf:", "zip:", "a=b", "a,b", "n" * 200]
letters = st.sampled_from(list("ab[]?*{}#%:~;'\"` -.,=\n\u00e4\U0001f600"))
names = st.one_of(st.sampled_from(ODD), st.text(letters, min_size=1, max_size=12)).filter(
    lambda name: name.strip(".") and len(name.encode()) < 240
)
kinds = st.sampled_from([".txt", ".md", ".jsonl", ".csv", ".txt.gz", ".jsonl.xz", ".TXT"])


def content(text: str, ending: str) -> bytes:
    """Return the content of a file with one row of this text."""
    kind, _, packed = ending[1:].lower().partition(".")
    plain = {"jsonl": json.dumps({"text": text}), "csv": f"text,n\n{text},1\n"}.get(kind, text).encode()
    return {"gz": gzip.compress, "xz": lzma.compress, "": bytes}[packed](plain)


@given(st.dictionaries(st.tuples(names, kinds), st.integers(0, 10**6), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_rows_bytes_and_hashes_match_the_files_read_for_any_name(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("x[1]?")
    for number, ((name, ending), value) in enumerate(files.items()):
        (folder / f"{name}{ending}").write_bytes(content(f"text {number} {value}", ending))
    of = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, raw in of.items():  # each file separately, including hidden ones
        rows, record, notices = open_documents(str(folder / name))
        number = [f"{stem}{ending}" for stem, ending in files].index(name)
        assert rows["text"][:] == [f"text {number} {[*files.values()][number]}"] and not notices
        assert record["files"] == [{"name": name, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}]
    seen = {name: raw for name, raw in of.items() if not name.startswith(".")}
    if not seen:
        return
    rows, record, notices = open_documents(str(folder))
    assert len(rows) == len(seen) and (len(notices) == 1) == (len(seen) < len(of))
    assert {file["name"]: file["sha256"] for file in record["files"]} == {
        name: hashlib.sha256(raw).hexdigest() for name, raw in seen.items()
    }
    stream = open_stream(str(folder), validation_fraction=0)
    streamed = [text for shard in range(stream.shards) for text in stream.read(shard, 0)]
    assert sorted(streamed) == sorted(rows["text"][:]) and stream.record == record


def test_a_name_with_brackets_does_not_match_a_neighbor(tmp_path):
    for name in ("data[1].txt", "data1.txt", "a?.txt", "ab.txt"):
        (tmp_path / name).write_text(f"I am {name}")
    for name in ("data[1].txt", "a?.txt"):
        assert open_documents(str(tmp_path / name)).rows["text"][:] == [f"I am {name}"]
    # Here the name is a pattern.
    assert open_documents(str(tmp_path / "a*.txt")).rows["text"][:] == ["I am a?.txt", "I am ab.txt"]
    assert open_documents(str(tmp_path / "data[12].txt")).rows["text"][:] == ["I am data1.txt"]


def test_rows_are_cached_by_content_and_not_by_path_and_time(tmp_path):
    file = tmp_path / "a.txt"
    for text in ("one", "two"):
        file.write_text(text)
        os.utime(file, (1e9, 1e9))
        rows, record, _ = open_documents(str(file))
        assert rows["text"][:] == [text]
        assert record["files"][0]["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_file_that_changes_between_its_hash_and_its_rows_is_refused(tmp_path, monkeypatch):
    file = tmp_path / f"{os.urandom(4).hex()}.txt"
    file.write_text(file.name)

    def find_and_change(name):
        found = find_files(name)
        file.write_text("other")
        return found

    monkeypatch.setattr(documents, "find_files", find_and_change)
    with pytest.raises(ValueError, match="has changed since the start"):
        open_documents(str(file))


def test_hidden_unknown_and_special_files_are_reported_and_not_read(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / ".trash").mkdir()
    for name in (".trash/b.txt", "._a.txt", ".DS_Store", "paper.pdf", "b.zip"):
        (tmp_path / name).write_text("not this")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "nowhere.txt").symlink_to("absent.txt")
    (tmp_path / "round").symlink_to(".", target_is_directory=True)  # a circular link
    (tmp_path / "self.txt").symlink_to("self.txt")
    rows, record, notices = open_documents(str(tmp_path))
    assert rows["text"][:] == ["text"] and [file["name"] for file in record["files"]] == ["a.txt"]
    assert "hidden files and folders are not read (3)" in notices[0]
    assert "b.zip, nowhere.txt, paper.pdf, pipe.txt, self.txt" in notices[1] and len(notices) == 2
    for name in ("pipe.txt", "/dev/zero"):
        with pytest.raises(ValueError, match="is not a regular file"):
            open_documents(str(tmp_path / name))
        with pytest.raises(ValueError, match="is not a regular file"):
            read_text_file(tmp_path / name)
    with pytest.raises(ValueError, match=r"self\.txt cannot be read"):
        open_documents(str(tmp_path / "self.txt"))
    with pytest.raises(ValueError, match=r"no file that ends in .* It has b\.zip, paper\.pdf"):
        (tmp_path / "only").mkdir()
        for name in ("paper.pdf", "b.zip"):
            (tmp_path / "only" / name).write_text("x")
        open_documents(str(tmp_path / "only"))


def test_a_pattern_reads_each_file_once_despite_circular_links(tmp_path):
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "sub/c.md", "sub/.hidden/d.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "again").symlink_to("sub", target_is_directory=True)
    for pattern, found in {
        "**/*.txt": ["a.txt", "sub/b.txt"],
        "**": ["a.txt", "sub/b.txt", "sub/c.md"],
        "sub/**/*.txt": ["sub/b.txt", "sub/up/a.txt"],
        "s*/*.txt": ["sub/b.txt"],
        "**/sub/**/[bc].*": ["sub/b.txt", "sub/c.md"],
    }.items():
        files, _ = find_files(str(tmp_path / pattern))
        assert [str(file.path.relative_to(tmp_path)) for file in files] == found, pattern


def test_a_folder_of_many_files_is_opened_in_linear_time(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(LocalFile, "__eq__", lambda *pair: compared.append(pair) or tuple.__eq__(*pair))
    for n in range(300):
        (tmp_path / f"{n}.txt").write_text("x")
    assert len(open_documents(str(tmp_path)).rows) == 300 and len(compared) < 3000


def written(folder: Path, name: str, text: str | bytes) -> str:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["txt", "md", "csv", "tsv", "jsonl", "json"])
def test_a_byte_order_mark_is_never_text(kind, encoding, tmp_path):
    text = "na\u00efve \U0001f600"
    whole = {"csv": f"text,n\n{text},1\n", "tsv": f"text\tn\n{text}\t1\n"}.get(kind, text)
    whole = json.dumps({"text": text}, ensure_ascii=False) if kind.startswith("json") else whole
    file = written(tmp_path, f"a.{kind}", whole.encode(encoding))
    assert open_documents(file).rows["text"][:] == [text]
    assert read_text_file(file) == whole
