"""Test documents: every kind of source gives the same ones, and splits lose none."""

import json

import pytest

from scratch_gpt.data.sources.documents import open_documents, split_documents
from scratch_gpt.data.splits import split_numbers


TEXTS = ["first document", "second\nwith two lines", "third"]


def write(folder, name, content):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content) if isinstance(content, str) else file.write_bytes(content)
    return str(file)


def source(kind, folder):
    if kind == "jsonl":
        return write(folder, "a.jsonl", "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS))
    if kind == "json":
        return write(folder, "a.json", json.dumps([{"text": text} for text in TEXTS]))
    if kind == "csv":
        return write(folder, "a.csv", "text,n\n" + "".join(f'"{text}",1\n' for text in TEXTS))
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "a.parquet")
        return str(folder / "a.parquet")
    for n, text in enumerate(TEXTS):
        write(folder / "texts", f"{n}.{'md' if n == 1 else 'txt'}", text)
    return {"folder": str(folder / "texts"), "glob": str(folder / "texts" / "*")}[kind]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "folder", "glob"])
def test_every_kind_of_source_gives_the_same_documents(kind, tmp_path):
    assert sorted(open_documents(source(kind, tmp_path)).rows["text"]) == sorted(TEXTS)


def test_mixed_files_and_empty_documents(tmp_path):
    write(tmp_path, "a.txt", "prose")
    write(tmp_path, "b.txt", "  \n")
    write(tmp_path, "c.jsonl", '{"text": "row", "more": 1}\n{"text": ""}\n')
    assert sorted(open_documents(str(tmp_path)).rows["text"]) == ["prose", "row"]


def test_another_column_is_chosen_by_name(tmp_path):
    file = write(tmp_path, "a.jsonl", '{"body": "hello", "text": "no"}\n')
    assert open_documents(file, text_column="body").rows["text"][:] == ["hello"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"body": "x"}\n', "no column 'text', only body. Choose another text_column"),
        ("a.jsonl", '{"text": 3}\n', "not text"),
        ("a.jsonl", '{"text": ""}\n', "no text"),
        ("a.jsonl", "{nonsense", "cannot be read as json"),
        ("a.txt", b"good\n\xff broken", "a.txt cannot be read: line 2 is not UTF-8"),
        ("a.txt", b"\xff\xfe broken", "mark of UTF-16, but is not"),
        ("a.pdf", "x", "a.pdf is not one of .txt"),
        ("absent/b.txt", None, "no such file"),
        ("none.txt", "", "no text"),
    ],
)
def test_bad_sources_are_one_line_errors(name, content, message, tmp_path):
    file = str(tmp_path / name) if content is None else write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        open_documents(file)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_dataset_is_a_one_line_error():
    with pytest.raises(ValueError, match=r"as a Hub dataset it could not be opened.*python-docs") as caught:
        open_documents("nobody/no-such-dataset")
    assert "\n" not in str(caught.value)


def test_splits_are_seeded_disjoint_and_lose_nothing(tmp_path):
    file = write(tmp_path, "a.jsonl", "".join(json.dumps({"text": f"doc {n}"}) + "\n" for n in range(50)))
    documents = open_documents(file).rows
    splits = {name: part["text"][:] for name, part in split_documents(documents, 0.1, 0.2, seed=3).items()}
    assert {name: len(part) for name, part in splits.items()} == {"train": 35, "validation": 5, "test": 10}
    assert sorted(sum(splits.values(), [])) == sorted(documents["text"][:])
    again, other = split_documents(documents, 0.1, 0.2, seed=3), split_documents(documents, 0.1, 0.2, seed=4)
    assert again["validation"]["text"][:] == splits["validation"]
    assert other["validation"]["text"][:] != splits["validation"]
    assert set(split_documents(documents, 0.0, 0.0)) == {"train"}


@pytest.mark.parametrize("n", [2, 5])
def test_an_empty_split_is_named(n):
    with pytest.raises(ValueError, match=f"{n} documents (are too few: .* for test|cannot be split into .* and test)"):
        split_numbers(n, 0.7, 0.2)
    assert all(map(len, split_numbers(6, 0.7, 0.2).values()))


def test_a_single_document_is_cut_by_position(tmp_path):
    text = "".join(chr(97 + n % 26) for n in range(1000))
    splits = split_documents(open_documents(write(tmp_path, "a.txt", text)).rows, 0.1, 0.05)
    assert [len(splits[name]["text"][0]) for name in ("train", "validation", "test")] == [850, 100, 50]
    assert "".join(splits[name]["text"][0] for name in ("train", "validation", "test")) == text


@pytest.mark.parametrize(
    ("fractions", "message"),
    [((1.0, 0.0), "less than 1"), ((-0.1, 0.0), "at least 0"), ((0.6, 0.5), "nothing to train on")],
)
def test_invalid_fractions_are_errors(fractions, message, tmp_path):
    documents = open_documents(source("jsonl", tmp_path)).rows
    with pytest.raises(ValueError, match=message):
        split_documents(documents, *fractions)
