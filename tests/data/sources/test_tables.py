"""Test tables: every kind of file is read exactly, and errors are one line."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.columns import Columns, one_column
from scratch_gpt.data.sources.documents import open_documents, open_rows


def content(text: str, ending: str) -> bytes:
    """Return the content of a file with one row of this text."""
    kind, _, packed = ending[1:].lower().partition(".")
    plain = {"jsonl": json.dumps({"text": text}), "csv": f"text,n\n{text},1\n"}.get(kind, text).encode()
    return {"gz": gzip.compress, "xz": lzma.compress, "": bytes}[packed](plain)


def zstandard(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard)]
)
def test_every_kind_of_file_is_read_compressed(ending, compress, tmp_path):
    pa.parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "t")
    plain = {
        "parquet": (tmp_path / "t").read_bytes(),
        "csv": b"text,n\na,1\nb,2\n",
        "tsv": b"n\ttext\n1\ta\n1\tb\n",
        "jsonl": b'{"text": "a"}\n{"text": "b"}\n',
        "json": b'[{"text": "a"}, {"text": "b"}]',
    }
    for kind, raw in plain.items():
        (tmp_path / f"x.{kind}.{ending}").write_bytes(compress(raw))
        assert open_documents(str(tmp_path / f"x.{kind}.{ending}")).rows["text"][:] == ["a", "b"]
    (tmp_path / f"x.md.{ending}").write_bytes(compress(b"a\r\nb"))
    assert open_documents(str(tmp_path / f"x.md.{ending}")).rows["text"][:] == ["a\nb"]
    (tmp_path / f"cut.txt.{ending}").write_bytes(compress(os.urandom(1000))[:-20])
    with pytest.raises(ValueError, match=rf"cut\.txt\.{ending} cannot be decompressed"):
        open_documents(str(tmp_path / f"cut.txt.{ending}"))


def written(folder: Path, name: str, text: str | bytes) -> str:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.csv", "text,label\nfine,ham\nmeet me, at 7,ham\n", 3),
        ("a.csv", 'text,label\n"two\nlines",ham\n\nmeet me, at 7,ham\n', 5),
        ("a.csv", "text\nNo comma here\nBut here, there is\n", 3),
        ("a.csv", "text\nEnds in one,\nNo comma here\n", 3),
        ("a.csv", "text,label\r\nmeet me, at 7,ham\r\n", 2),
        ("a.csv", "text,label,,\nmeet me, at 7,ham\n", 2),
        ("a.tsv", "text\tlabel\nmeet\tme\tham\n", 2),
        ("a.csv", 'text,label\n"never closed,ham\nfine,ham\n', 2),
    ],
)
def test_a_row_with_more_fields_than_columns_is_named_by_file_and_line(name, text, line, tmp_path):
    columns = Columns((("text", "label"),)) if "label" in text else one_column("text")
    with pytest.raises(ValueError, match=rf"{name}.*line {line}: ") as caught:
        open_rows(written(tmp_path, name, text), columns=columns)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label\nfine,ham,\ngood,spam,\n"),
        ("a.csv", "text,label,,\nfine,ham,,\ngood,spam,,\n"),
        ("a.tsv", "text\tlabel\nfine\tham\t\ngood\tspam\t\n"),
        ("a.csv", "\ufefftext,label\r\nfine,ham\r\n\r\ngood,spam\r\n"),
        ("a.csv", "text,label\rfine,ham\rgood,spam\r"),
    ],
)
def test_trailing_separators_and_blank_lines_are_accepted(name, text, tmp_path):
    rows = open_rows(written(tmp_path, name, text), columns=Columns((("text", "label"),))).rows
    assert rows[:] == {"text": ["fine", "good"], "label": ["ham", "spam"]}


values = st.one_of(
    st.sampled_from(["007", "7", "3.10", "3.1", "1e3", "nan", "None", "null", "NA", "True", " x ", "9" * 22, ""]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_columns_of_csv_and_tsv_are_read_exactly_as_text(tmp_path_factory, pairs):
    import csv

    folder = tmp_path_factory.mktemp("values")
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *pairs])
    assert [(row["text"], row["label"]) for row in open_rows(str(folder / "a.csv")).rows] == pairs
    with (folder / "a.tsv").open("w", newline="", encoding="utf-8") as file:
        file.writelines("\t".join(pair) + "\n" for pair in [("text", "label"), *pairs])
    assert [(row["text"], row["label"]) for row in open_rows(str(folder / "a.tsv")).rows] == pairs


def test_line_ends_inside_quotation_marks_are_text(tmp_path):
    text = "a\rb\r\nc\nd\u2028e\x0cf\x85g"
    for end in ("\n", "\r\n", "\r"):
        rows = open_rows(written(tmp_path, "a.csv", f'text,n{end}"{text}",1{end}x,2{end}')).rows
        assert rows[:] == {"text": [text, "x"], "n": ["1", "2"]}


def test_unused_columns_have_no_effect(tmp_path):
    lines = [{"text": f"t{n}", "score": None, "tags": []} for n in range(12_000)]
    lines += [{"text": "late", "score": "high", "tags": [{"a": 1}], "more": 2**80}, {"score": 3, "text": "last"}]
    file = written(tmp_path, "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert open_documents(file).rows["text"][-2:] == ["late", "last"]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1200[12]: .* in column '(more|score)'"):
        open_rows(file)


def test_a_key_that_is_missing_or_empty_in_the_first_rows_is_accepted(tmp_path):
    first = [{"messages": [{"role": "user", "content": "a"}], "input": None}] * 5000
    late = [{"messages": [{"role": "user", "content": "a", "name": "x"}], "input": "here", "id": 7}]
    text = "".join(json.dumps(line) + "\n" for line in first + late)
    rows = open_rows(written(tmp_path, "a.jsonl", text)).rows
    assert rows[0] == {"messages": [{"role": "user", "content": "a", "name": None}], "input": None, "id": None}
    assert rows[5000] == late[0]
    assert open_rows(written(tmp_path, "b.jsonl", '{"id": 1}\n' * 9000 + '{"text": "t"}\n')).rows["text"][-1] == "t"


def test_files_of_different_kinds_are_read_together_and_those_without_the_column_are_named(tmp_path):
    written(tmp_path, "a.csv", "text,label\none,007\n")
    written(tmp_path, "b.jsonl", '{"text": "two", "n": 1}\n')
    written(tmp_path, "c.txt", "three")
    written(tmp_path, "d.json", '{"name": "package", "version": 2}')
    written(tmp_path, "e.csv", "id,title\n1,x\n")
    written(tmp_path, "f.tsv", "")
    pa.parquet.write_table(pa.table({"text": pa.array(["four"], pa.large_string())}), tmp_path / "g.parquet")
    rows, record, notices = open_documents(str(tmp_path))
    assert rows["text"][:] == ["one", "two", "three", "four"]
    assert [file["name"] for file in record["files"]] == ["a.csv", "b.jsonl", "c.txt", "g.parquet"]
    assert notices == [f"{tmp_path}: skipped files without column 'text': d.json, e.csv, f.tsv."]
    with pytest.raises(ValueError, match="no column 'body', only text, label, n, name, version, id, title"):
        open_documents(str(tmp_path), text_column="body")


def test_a_kill_while_rows_are_cached_leaves_no_partial_cache(tmp_path, monkeypatch):
    written(tmp_path, "a.csv", f"text\n{os.urandom(4).hex()}\n")
    written(tmp_path, "b.jsonl", '{"text": "b", "n": 1}\n')

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    for name in ("concat_tables", "OSFile"):
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(pa, name, killed)
            open_rows(str(tmp_path))
    assert open_rows(str(tmp_path)).rows["n"][:] == [None, 1]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.txt", b"fine\nna\xefve"),
        ("a.csv", b"text,n\nna\xefve,1\n"),
        ("a.tsv", b"text\tn\nna\xefve\t1\n"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "na\xefve"}\n'),
        ("a.json", b'[\n{"text": "na\xefve"}]'),
    ],
)
def test_a_line_that_is_not_utf8_is_named_by_file_and_number(name, raw, tmp_path):
    with pytest.raises(ValueError, match=rf"{name} cannot be read: line 2 is not UTF-8 \(byte 0xef\)"):
        open_documents(written(tmp_path, name, raw))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2: .* is not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "cannot be read as json: line 2"),
        ("a.jsonl", '"a"\n', "line 1: .* is not a JSON object"),
        ("a.json", "[1, 2]", "element 1: '1' is not a JSON object"),
        ("a.json", "[" * 100_000, "cannot be read as json"),
        ("a.json", "", "is empty"),
        ("a.json", "[]", "no column 'text', only none"),
        ("a.json", "{\n}", "no column 'text', only none"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "line 1"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', "line 2: '3' in column 'text'"),
        ("a.csv", "text,text\na,b\n", "two columns 'text'"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "\\ud83d"}\n',
            "line 2: .* in column 'text' cannot be read: .*surrogates",
        ),
        ("a.parquet", "PAR1 but not really", "cannot be read as parquet"),
    ],
)
def test_files_whose_content_does_not_match_the_suffix_are_one_line_errors(name, text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        open_documents(written(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_json_may_be_one_value_or_one_value_per_line(tmp_path):
    texts = {
        "a.json": '{"text": "a"}\n{"text": "b"}\n',
        "b.json": '[\n  {"text": "a"},\n  {"text": "b"}\n]',
        "c.json": '["a", "b"]',
        "d.jsonl": '\n{"text": "a"}\n\n{"text": "b"}',
        "e.jsonl": '[{"text": "a"}, {"text": "b"}]',
    }
    for name, text in texts.items():
        assert open_documents(written(tmp_path, name, text)).rows["text"][:] == ["a", "b"], name
    assert open_documents(written(tmp_path, "f.json", '{\n"text": "a"\n}')).rows["text"][:] == ["a"]


def test_a_json_file_without_rows_is_skipped_among_others(tmp_path):
    written(tmp_path, "a.txt", "text")
    written(tmp_path, "b.json", "[1, 2, 3]")
    rows, _, notices = open_documents(str(tmp_path))
    assert rows["text"][:] == ["text"] and notices == [f"{tmp_path}: skipped files without column 'text': b.json."]
    for name, content in (("c.csv", "text,label\n"), ("d.tsv", "text\n")):
        with pytest.raises(ValueError, match="contains no rows"):
            open_rows(written(tmp_path, name, content))
