"""Laws of the data room: tokens are conserved, asked once, and read from wherever they lie."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import IGNORED, Windows, mask_inputs, require_full_window
from scratch_gpt.data.sources.documents import open_documents, split_documents
from scratch_gpt.data.sources.token_stream import token_stream
from scratch_gpt.data.splits import split_numbers
from scratch_gpt.tokenization.tokenizer import encode_batch, load_tokenizer


def asked(windows: Windows) -> list[int]:
    """The stream positions that all windows together ask, in order."""
    found = []
    for k in range(len(windows)):
        row = windows[k]
        start = k * windows.stride
        found += [start + t + 1 for t, label in enumerate(row["shift_labels"]) if label != IGNORED]
    return found


streams = st.integers(2, 60).map(lambda n: np.arange(100, 100 + n, dtype=np.uint16))
lengths = st.integers(1, 20)


@given(ids=streams, max_length=lengths)
@settings(deadline=None)
def test_joined_at_stride_max_length_windows_are_the_stream(ids, max_length):
    windows = Windows(ids, max_length)
    joined = np.concatenate([windows[k]["input_ids"] for k in range(len(windows))])
    assert joined.tolist() == ids[:-1].tolist()
    assert asked(windows) == list(range(1, len(ids)))


@given(ids=streams, max_length=lengths, stride=lengths)
@settings(deadline=None)
def test_every_label_is_the_next_token_and_context_is_a_target_once(ids, max_length, stride):
    windows = Windows(ids, max_length, stride, overlap="context")
    for k in range(len(windows)):
        row = windows[k]
        assert 1 <= len(row["input_ids"]) <= max_length
        for t, label in enumerate(row["shift_labels"]):
            assert row["input_ids"][t] == ids[k * stride + t]
            assert label in (IGNORED, ids[k * stride + t + 1])
    if stride <= max_length:
        assert asked(windows) == list(range(1, len(ids)))  # each once, though windows overlap
    else:
        assert len(set(asked(windows))) == len(asked(windows))  # gaps, but nothing twice


@given(ids=streams, max_length=lengths, stride=lengths)
@settings(deadline=None)
def test_every_token_is_a_target_in_overlapping_windows(ids, max_length, stride):
    if stride <= max_length:
        assert set(asked(Windows(ids, max_length, stride))) == set(range(1, len(ids)))


@given(ids=streams, max_length=lengths, stride=lengths)
@settings(deadline=None)
def test_drop_tail_keeps_whole_windows_only(ids, max_length, stride):
    if len(ids) <= max_length:
        with pytest.raises(ValueError, match=f"{len(ids)} tokens are fewer than one window takes"):
            Windows(ids, max_length, stride, drop_tail=True)
        return
    windows = Windows(ids, max_length, stride, drop_tail=True)
    assert all(len(windows[k]["input_ids"]) == max_length for k in range(len(windows)))
    whole = Windows(ids, max_length, stride)
    assert len(whole) - len(windows) in (0, 1)


def test_the_standard_example(data):
    gpt2 = load_tokenizer(data / "gpt2-tokenizer")
    story = open_documents(str(data / "the-verdict.txt")).rows
    stream = token_stream(story, lambda texts: encode_batch(gpt2, texts), 50256, "the-verdict")
    assert (len(stream.ids), stream.bytes, len(stream.ends)) == (5146, 20479, 1)  # 5,145 tokens and EOS
    four, one = Windows(stream.ids, 4, 4), Windows(stream.ids, 4, 1)
    assert four[0]["input_ids"].tolist() == [40, 367, 2885, 1464]
    assert four[0]["shift_labels"].tolist() == [367, 2885, 1464, 1807]
    assert four[1]["input_ids"].tolist() == [1807, 3619, 402, 271]
    assert one[0]["input_ids"].tolist() == [40, 367, 2885, 1464]
    assert one[1]["input_ids"].tolist() == [367, 2885, 1464, 1807]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 0}, "at least 1"),
        ({"stride": 0}, "at least 1"),
        ({"overlap": "forget"}, "'ask' or 'context'"),
        ({"ids": np.array([5])}, "1 tokens are fewer than one window takes"),
    ],
)
def test_impossible_windows_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        Windows(**{"ids": np.arange(9), "max_length": 4, **changes})


def test_a_split_without_one_full_window_says_how_many_tokens_it_takes():
    require_full_window(np.arange(5), 4, "train")
    with pytest.raises(ValueError, match=r"validation split has 4 tokens.*takes 5"):
        require_full_window(np.arange(4), 4, "validation")


def test_short_rows_are_padded_with_positions_without_target():
    windows = Windows(np.arange(10, 17), 4)
    batch = collate_rows([windows[0], windows[1]], pad_token_id=1, length=4)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13], [14, 15, 1, 1]]
    assert batch["shift_labels"].tolist() == [[11, 12, 13, 14], [15, 16, -100, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


# --- Sources -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("longest", "max_length", "T"), [(3, None, 3), (3, 64, 8), (8, 64, 8), (9, 64, 16), (9, 12, 12)]
)
def test_padded_batches_have_few_lengths(longest, max_length, T):
    rows = [{"input_ids": np.arange(n), "shift_labels": np.arange(n)} for n in (1, longest)]
    batch = collate_rows(rows, pad_token_id=7, max_length=max_length)
    assert batch["input_ids"].shape == (2, T) and (batch["shift_labels"][1, longest:] == -100).all()


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
        ("a.txt", b"\xff\xfe broken", "mark of UTF-16 and is not"),
        ("a.pdf", "x", "a.pdf, whose ending is none of .txt"),
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


def test_the_embedded_default_is_english_prose_without_a_download():
    documents = open_documents().rows
    size = sum(len(text.encode()) for text in documents["text"])
    assert len(documents) > 300 and size > 1_000_000
    assert any("iterable" in text for text in documents["text"][:])


def test_a_python_without_sources_asks_for_a_dataset(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="dataset of your own"):
        open_documents()


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
def test_a_split_for_which_nothing_is_left_is_named(n):
    with pytest.raises(ValueError, match=f"{n} documents (leave nothing for test|cannot be split into .* and test)"):
        split_numbers(n, 0.7, 0.2)
    assert all(map(len, split_numbers(6, 0.7, 0.2).values()))


def test_one_document_is_cut_by_position(tmp_path):
    text = "".join(chr(97 + n % 26) for n in range(1000))
    splits = split_documents(open_documents(write(tmp_path, "a.txt", text)).rows, 0.1, 0.05)
    assert [len(splits[name]["text"][0]) for name in ("train", "validation", "test")] == [850, 100, 50]
    assert "".join(splits[name]["text"][0] for name in ("train", "validation", "test")) == text


@pytest.mark.parametrize(
    ("fractions", "message"),
    [((1.0, 0.0), "less than 1"), ((-0.1, 0.0), "at least 0"), ((0.6, 0.5), "nothing to train on")],
)
def test_impossible_fractions_are_errors(fractions, message, tmp_path):
    documents = open_documents(source("jsonl", tmp_path)).rows
    with pytest.raises(ValueError, match=message):
        split_documents(documents, *fractions)


def test_documents_end_in_eos_and_bytes_are_counted(tmp_path):
    documents = open_documents(write(tmp_path, "a.jsonl", '{"text": "ab"}\n{"text": "\u00e9"}\n')).rows
    stream = token_stream(documents, lambda texts: [list(text.encode()) for text in texts], 0, "bytes")
    assert stream.ids.tolist() == [97, 98, 0, 0xC3, 0xA9, 0] and stream.ids.dtype == np.uint16
    assert (len(stream.ends), stream.bytes) == (2, 4)


@given(n=st.integers(1, 40), place=st.integers(0, 1000), most=st.integers(1, 3))
@settings(deadline=None)
def test_masked_inputs_change_one_to_three_tokens_and_no_target(n, place, most):
    row = {"input_ids": np.arange(5, 5 + n), "shift_labels": np.arange(6, 6 + n)}
    masked = mask_inputs(row, place, mask_token_id=0, most=most, seed=7)
    changed = np.flatnonzero(masked["input_ids"] != row["input_ids"])
    assert min(n, 1) <= len(changed) <= most and (masked["input_ids"][changed] == 0).all()
    assert masked["shift_labels"].tolist() == row["shift_labels"].tolist()
    again = mask_inputs(row, place, mask_token_id=0, most=most, seed=7)
    assert again["input_ids"].tolist() == masked["input_ids"].tolist()
    assert row["input_ids"].tolist() == list(range(5, 5 + n))  # the row itself is left as it is


def test_a_row_is_masked_differently_at_each_place():
    row = {"input_ids": np.arange(5, 45), "shift_labels": np.arange(6, 46)}
    found = {tuple(mask_inputs(row, place, mask_token_id=0)["input_ids"]) for place in range(20)}
    assert len(found) > 15
