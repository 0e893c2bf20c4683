"""Laws of local files: what is in the record is what was read, whatever a file is called, holds or is encoded in."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.columns import CONVERSATIONS, Columns, one_column
from scratch_gpt.data.rows.conversations import read_messages
from scratch_gpt.data.sources import documents
from scratch_gpt.data.sources.documents import open_documents, open_rows
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
    """A file of one row with this text."""
    kind, _, packed = ending[1:].lower().partition(".")
    plain = {"jsonl": json.dumps({"text": text}), "csv": f"text,n\n{text},1\n"}.get(kind, text).encode()
    return {"gz": gzip.compress, "xz": lzma.compress, "": bytes}[packed](plain)


@given(st.dictionaries(st.tuples(names, kinds), st.integers(0, 10**6), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_rows_bytes_and_hashes_of_any_names_are_those_of_what_is_read(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("x[1]?")
    for number, ((name, ending), value) in enumerate(files.items()):
        (folder / f"{name}{ending}").write_bytes(content(f"text {number} {value}", ending))
    of = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, raw in of.items():  # each alone, hidden ones too
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


def test_a_neighbor_is_not_read_in_place_of_a_name_with_brackets(tmp_path):
    for name in ("data[1].txt", "data1.txt", "a?.txt", "ab.txt"):
        (tmp_path / name).write_text(f"I am {name}")
    for name in ("data[1].txt", "a?.txt"):
        assert open_documents(str(tmp_path / name)).rows["text"][:] == [f"I am {name}"]
    assert open_documents(str(tmp_path / "a*.txt")).rows["text"][:] == ["I am a?.txt", "I am ab.txt"]  # a pattern
    assert open_documents(str(tmp_path / "data[12].txt")).rows["text"][:] == ["I am data1.txt"]


def test_rows_are_kept_by_content_not_by_path_and_time(tmp_path):
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
    with pytest.raises(ValueError, match="has changed since it was found"):
        open_documents(str(file))


def test_hidden_unknown_and_special_files_are_named_not_read(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / ".trash").mkdir()
    for name in (".trash/b.txt", "._a.txt", ".DS_Store", "paper.pdf", "b.zip"):
        (tmp_path / name).write_text("not this")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "nowhere.txt").symlink_to("absent.txt")
    (tmp_path / "round").symlink_to(".", target_is_directory=True)  # a loop of folders
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
    with pytest.raises(ValueError, match=r"no file that ends in .* It holds b\.zip, paper\.pdf"):
        (tmp_path / "only").mkdir()
        for name in ("paper.pdf", "b.zip"):
            (tmp_path / "only" / name).write_text("x")
        open_documents(str(tmp_path / "only"))


def test_a_pattern_reads_each_file_once_though_links_go_in_circles(tmp_path):
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


def zstandard(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard)]
)
def test_every_kind_is_read_compressed(ending, compress, tmp_path):
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


# --- Tables ------------------------------------------------------------------------------------------------------


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
def test_separators_behind_the_last_column_and_blank_lines_are_no_error(name, text, tmp_path):
    rows = open_rows(written(tmp_path, name, text), columns=Columns((("text", "label"),))).rows
    assert rows[:] == {"text": ["fine", "good"], "label": ["ham", "spam"]}


values = st.one_of(
    st.sampled_from(["007", "7", "3.10", "3.1", "1e3", "nan", "None", "null", "NA", "True", " x ", "9" * 22, ""]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_columns_of_csv_and_tsv_are_text_to_the_character(tmp_path_factory, pairs):
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


def test_columns_that_are_not_in_use_do_not_matter(tmp_path):
    lines = [{"text": f"t{n}", "score": None, "tags": []} for n in range(12_000)]
    lines += [{"text": "late", "score": "high", "tags": [{"a": 1}], "more": 2**80}, {"score": 3, "text": "last"}]
    file = written(tmp_path, "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert open_documents(file).rows["text"][-2:] == ["late", "last"]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1200[12]: .* in column '(more|score)'"):
        open_rows(file)


def test_a_key_that_comes_late_or_is_empty_at_first_is_no_error(tmp_path):
    first = [{"messages": [{"role": "user", "content": "a"}], "input": None}] * 5000
    late = [{"messages": [{"role": "user", "content": "a", "name": "x"}], "input": "here", "id": 7}]
    text = "".join(json.dumps(line) + "\n" for line in first + late)
    rows = open_rows(written(tmp_path, "a.jsonl", text)).rows
    assert rows[0] == {"messages": [{"role": "user", "content": "a", "name": None}], "input": None, "id": None}
    assert rows[5000] == late[0]
    assert open_rows(written(tmp_path, "b.jsonl", '{"id": 1}\n' * 9000 + '{"text": "t"}\n')).rows["text"][-1] == "t"


def test_files_of_any_kinds_lie_together_and_those_without_the_column_are_named(tmp_path):
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
    assert notices == [f"{tmp_path}: not read, without column 'text': d.json, e.csv, f.tsv."]
    with pytest.raises(ValueError, match="no column 'body', only text, label, n, name, version, id, title"):
        open_documents(str(tmp_path), text_column="body")


def test_a_label_that_is_text_in_one_file_and_a_number_in_another_is_text(tmp_path):
    written(tmp_path, "a.csv", "text,label\none,1\n")
    written(tmp_path, "b.jsonl", '{"text": "two", "label": 1}\n{"text": "three", "label": null}\n')
    columns = Columns((("text", "label"),))
    assert open_rows(str(tmp_path), columns=columns).rows["label"][:] == ["1", "1", None]
    written(tmp_path, "b.jsonl", '{"text": "two", "label": 1.5}\n')
    with pytest.raises(ValueError, match="cannot be read as one table: .* label"):
        open_rows(str(tmp_path), columns=columns)


def test_classes_next_to_text_become_their_names_and_booleans_become_text(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features).to_parquet(
        tmp_path / "a.parquet"
    )
    written(tmp_path, "b.csv", "text,label\nd,y\n")
    columns = Columns((("text", "label"),))
    rows = open_rows(str(tmp_path), columns=columns).rows
    assert rows["label"][:] == ["y", "x", None, "y"] and not hasattr(rows.features["label"], "names")
    (tmp_path / "a.parquet").unlink()
    written(tmp_path, "b.csv", "text,label\nd,True\n")
    written(tmp_path, "c.jsonl", '{"text": "e", "label": true}\n')
    assert open_rows(str(tmp_path), columns=columns).rows["label"][:] == ["True", "True"]


def test_a_kill_while_rows_are_kept_leaves_none_behind(tmp_path, monkeypatch):
    written(tmp_path, "a.csv", f"text\n{os.urandom(4).hex()}\n")
    written(tmp_path, "b.jsonl", '{"text": "b", "n": 1}\n')

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    for name in ("concat_tables", "OSFile"):
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(pa, name, killed)
            open_rows(str(tmp_path))
    assert open_rows(str(tmp_path)).rows["n"][:] == [None, 1]


def test_classes_keep_their_names_and_two_orders_of_them_are_refused(tmp_path):
    def save(name: str, classes: list[str]) -> None:
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=classes)})
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1], "id": [1, 2]}).remove_columns("id")
        rows.cast(features).to_parquet(str(tmp_path / name))

    columns = Columns((("label",),))
    save("a.parquet", ["world", "business"])
    features = open_rows(str(tmp_path / "a.parquet"), columns=columns).rows.features
    assert features["label"].names == ["world", "business"]
    save("b.parquet", ["world", "business"])
    assert len(open_rows(str(tmp_path), columns=columns).rows) == 4
    save("b.parquet", ["business", "world"])
    with pytest.raises(ValueError, match="'label' has other classes, or another order"):
        open_rows(str(tmp_path), columns=columns)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["txt", "md", "csv", "tsv", "jsonl", "json"])
def test_a_byte_order_mark_is_never_text(kind, encoding, tmp_path):
    text = "na\u00efve \U0001f600"
    whole = {"csv": f"text,n\n{text},1\n", "tsv": f"text\tn\n{text}\t1\n"}.get(kind, text)
    whole = json.dumps({"text": text}, ensure_ascii=False) if kind.startswith("json") else whole
    file = written(tmp_path, f"a.{kind}", whole.encode(encoding))
    assert open_documents(file).rows["text"][:] == [text]
    assert read_text_file(file) == whole


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
def test_files_that_are_not_what_their_ending_says_are_one_line_errors(name, text, message, tmp_path):
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


def test_a_json_that_is_not_rows_is_skipped_among_others(tmp_path):
    written(tmp_path, "a.txt", "text")
    written(tmp_path, "b.json", "[1, 2, 3]")
    rows, _, notices = open_documents(str(tmp_path))
    assert rows["text"][:] == ["text"] and notices == [f"{tmp_path}: not read, without column 'text': b.json."]
    for name, content in (("c.csv", "text,label\n"), ("d.tsv", "text\n")):
        with pytest.raises(ValueError, match="holds no rows"):
            open_rows(written(tmp_path, name, content))


def test_streamed_text_is_text(tmp_path):
    with pytest.raises(ValueError, match=r"Column 'text' of a\.jsonl holds int64, not text"):
        open_stream(written(tmp_path, "a.jsonl", '{"text": 1}\n'))
    late = '{"text": "a"}\n' * 5000 + '{"text": 1}\n'
    with pytest.raises(ValueError, match=r"b\.jsonl, line 5001: '1' in column 'text'|holds int64, not text"):
        open_stream(written(tmp_path, "b.jsonl", late))


def test_unused_keys_of_messages_may_have_any_type(tmp_path):
    answer = {"role": "assistant", "content": "b"}
    rows = [
        {"messages": [{"role": "user", "content": "a", "id": 1}, answer], "tools": []},
        {"messages": [{"role": "user", "content": "a", "id": "x"}, {**answer, "tool_calls": []}], "tools": None},
        {"messages": [{"role": "user", "content": "a"}, {**answer, "weight": 1}]},
    ]
    file = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = [read_messages(row) for row in open_rows(file, columns=CONVERSATIONS).rows]
    assert found == [[{"role": "user", "content": "a"}, answer]] * 3
    calls = [[{"arguments": {"a": 1}}], [{"arguments": {"a": "x"}}]]
    rows = [{"messages": [{"role": "user", "content": "a"}, {**answer, "tool_calls": call}]} for call in calls]
    file = written(tmp_path, "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for row in open_rows(file, columns=CONVERSATIONS).rows:
        with pytest.raises(ValueError, match="has tool_calls, which cannot be learned"):
            read_messages(row)
    file = written(tmp_path, "c.jsonl", json.dumps({**rows[0], "tools": [{"name": "look"}]}) + "\n")
    with pytest.raises(ValueError, match="the row has tools, which cannot be learned"):
        read_messages(open_rows(file, columns=CONVERSATIONS).rows[0])


def test_rows_of_several_forms_are_read_together(tmp_path):
    written(tmp_path, "a.csv", "instruction,output,id\nAdd 1 and 1,2,x\n")
    written(tmp_path, "b.jsonl", '{"messages": [{"role": "user", "content": "Hi"}], "meta": 1}\n')
    rows = open_rows(str(tmp_path), columns=CONVERSATIONS).rows
    assert sorted(rows.column_names) == ["instruction", "messages", "output"] and rows["output"][:] == ["2", None]
