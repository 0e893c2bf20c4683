"""Test the prepared folder: rows of every kind are restored as they were written."""

import pickle

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.prepared.storage import PreparedRows, read_table, write_part, write_table
from scratch_gpt.data.rows.block import RowBlock
from scratch_gpt.data.rows.packing import PackedRows
from scratch_gpt.data.rows.windows import IGNORED, Windows


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[key].tolist() == other[key].tolist() for key in one)


def block_of(rows: list[dict]) -> RowBlock:
    joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    lengths = np.array([len(row["input_ids"]) for row in rows])
    return RowBlock(joined["input_ids"], joined["shift_labels"], lengths, joined.get("position_ids"))


def written(rows: list[dict], folder, vocab_size: int = 50_000, parts: int = 1) -> PreparedRows:
    for file in folder.glob("part-*.arrow"):
        file.unlink()
    share = -(-len(rows) // parts)
    made = [
        write_part([block_of(rows[n * share : (n + 1) * share])], folder / f"part-{n:05d}.arrow", vocab_size)
        for n in range(-(-len(rows) // share))
    ]
    assert sum(part.rows for part in made) == len(rows)
    assert sum(part.tokens for part in made) == sum(len(row["input_ids"]) for row in rows)
    targets = sum(int((row["shift_labels"] != IGNORED).sum()) for row in rows)
    assert sum(part.targets for part in made) == targets
    return PreparedRows(folder, targets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    max_length=st.integers(1, 16),
    pack=st.booleans(),
    parts=st.integers(1, 3),
)
@settings(deadline=None, max_examples=50)
def test_packed_rows_are_restored_exactly(folder, lengths, max_length, pack, parts):
    ids = np.arange(sum(lengths), dtype=np.uint16)
    rows = PackedRows(ids, np.cumsum(lengths), max_length, pack=pack)
    every = [rows[k] for k in range(len(rows))]
    back = written(every, folder, parts=parts)
    assert len(back) == len(every) and all(same(back[k], every[k]) for k in range(len(every)))
    assert back.lengths.tolist() == rows.lengths.tolist()
    assert back.asked_per_row == pytest.approx(rows.asked_per_row)


@given(
    n=st.integers(2, 60),
    max_length=st.integers(1, 16),
    stride=st.integers(1, 20),
    overlap=st.sampled_from(["ask", "context"]),
)
@settings(deadline=None, max_examples=50)
def test_windows_are_restored_exactly(folder, n, max_length, stride, overlap):
    windows = Windows(np.arange(n), max_length, stride, overlap)
    every = [windows[k] for k in range(len(windows))]
    back = written(every, folder)
    assert all(same(back[k], every[k]) for k in range(len(every)))


@given(choices=st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_any_choice_of_target_positions_is_restored(folder, choices):
    rows = []
    for choice in choices:
        ids = np.arange(len(choice) + 1)
        rows.append({"input_ids": ids[:-1], "shift_labels": np.where(choice, ids[1:], IGNORED)})
    back = written(rows, folder)
    assert all(same(back[k], rows[k]) for k in range(len(rows)))


@pytest.mark.parametrize(("vocab_size", "kind"), [(65536, "uint16"), (65537, "uint32")])
def test_ids_take_the_smallest_type_and_any_arrow_reader_opens_them(tmp_path, vocab_size, kind):
    windows = Windows(np.arange(vocab_size - 20, vocab_size), 8)
    written([windows[k] for k in range(len(windows))], tmp_path, vocab_size)
    opened = datasets.load_dataset("arrow", data_files=str(tmp_path / "part-*.arrow"), split="train", streaming=True)
    rows = list(opened)
    assert rows[0]["input_ids"] == list(range(vocab_size - 20, vocab_size - 12))
    assert opened.features["input_ids"].feature.dtype == kind


CORPORA = {"large": (0, 50_257, 40), "tiny": (1, 300, 7), "wide": (2, 70_000, 200)}  # seed, vocabulary, documents
HASHES = {  # of rows written by version 0.1
    ("large", "windows"): "4f22cbce27041b1d",
    ("large", "context"): "68ac58cd613d7a66",
    ("large", "pack"): "6c6e461fac1031a7",
    ("large", "pad"): "43b2f99fb0829c24",
    ("tiny", "windows"): "1f5e417a87505d59",
    ("tiny", "context"): "e771a6965b338a36",
    ("tiny", "pack"): "51aac36f08ef5244",
    ("tiny", "pad"): "049b6111fec4f039",
    ("wide", "windows"): "2d7cc969165eee45",
    ("wide", "context"): "31e135ad6132df0a",
    ("wide", "pack"): "b54b76d56f839b2e",
    ("wide", "pad"): "d157c0308d329c85",
}


@pytest.mark.parametrize(("corpus", "kind"), HASHES)
def test_rows_keep_their_hash_across_versions_and_block_sizes(corpus, kind, tmp_path):
    seed, vocab_size, documents = CORPORA[corpus]
    draws = np.random.default_rng(seed)
    lengths = draws.integers(1, 90, documents)
    ids = draws.integers(0, vocab_size, lengths.sum())
    ids, ends = ids.astype(np.uint16 if vocab_size <= 2**16 else np.uint32), np.cumsum(lengths)
    rows = {
        "windows": lambda: Windows(ids, 16),
        "context": lambda: Windows(ids, 16, 5, "context"),
        "pack": lambda: PackedRows(ids, ends, 32),
        "pad": lambda: PackedRows(ids, ends, 32, pack=False),
    }[kind]()
    for size in (1, 3, len(rows)):
        blocks = [rows.block(k, min(k + size, len(rows))) for k in range(0, len(rows), size)]
        part = write_part(blocks, tmp_path / "part-00000.arrow", vocab_size)
        assert part.sha256.startswith(HASHES[corpus, kind])


def test_the_hash_changes_with_any_row(tmp_path):
    windows = Windows(np.arange(20), 8)
    rows = [windows[k] for k in range(len(windows))]
    file = tmp_path / "part-00000.arrow"
    first = write_part([block_of(rows)], file, 100).sha256
    assert write_part([block_of(rows)], file, 10**6).sha256 == first  # stored in another type
    assert write_part([block_of(rows[::-1])], file, 100).sha256 != first
    rows[0]["shift_labels"][2] = IGNORED
    assert write_part([block_of(rows)], file, 100).sha256 != first


def test_rows_are_pickled_as_their_folder(tmp_path):
    windows = Windows(np.arange(20), 8)
    rows = written([windows[k] for k in range(len(windows))], tmp_path)
    assert len(pickle.dumps(rows)) < 1000
    assert same(pickle.loads(pickle.dumps(rows))[1], rows[1])


def test_a_folder_without_rows_or_with_a_damaged_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no prepared rows"):
        PreparedRows(tmp_path)
    (tmp_path / "part-00000.arrow").write_bytes(b"not arrow at all")
    with pytest.raises(ValueError, match="cannot be read"):
        PreparedRows(tmp_path)


def packed(folder) -> None:
    rows = PackedRows(np.arange(60, dtype=np.uint16), np.array([5, 20, 29, 48, 60]), 16, pack=True)
    made = [rows[k] for k in range(len(rows))]
    made[1]["shift_labels"][3] = IGNORED
    write_part([block_of(made)], folder / "part-00000.arrow", 1000)


def lists(values: list[list[int]], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.list_(kind))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": lists([[1, 2, 60]] * 4, pa.uint16())}, "token id 60, but the vocabulary has 60"),
        ({"next_token": pa.array([1, 2, 3, 60], pa.int32())}, "token id 60, but the vocabulary has 60"),
        ({"next_token": pa.array([1, 2, 3, -7], pa.int32())}, "negative token id"),
        ({"input_ids": lists([[1], [], [2], [3]], pa.uint16())}, "a row without tokens"),
        ({"input_ids": lists([[1] * 17] * 4, pa.uint16())}, "a row of 17 tokens; at most 16 are allowed"),
        ({"input_ids": lists([[1, None]] * 4, pa.uint16())}, "has missing values"),
        ({"input_ids": pa.array([[1], None, [2], [3]], pa.list_(pa.uint16()))}, "has missing values"),
        ({"input_ids": lists([[1]] * 4, pa.int64())}, "has the type list"),
        ({"document_starts": lists([[0], [0], [0], [0, 16]], pa.int32())}, "is outside its row"),
        ({"document_starts": lists([[0], [0], [0], [-1]], pa.int32())}, "is outside its row"),
        ({"asked": pa.array([None, b"\1", None, None], pa.binary())}, "a mask and its row differ in length"),
        ({"asked": None}, "asked"),
    ],
)
def test_an_invalid_value_is_named_in_the_error(changes, message, tmp_path):
    packed(tmp_path)
    file = tmp_path / "part-00000.arrow"
    table = read_table(file)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names} | changes
    write_table(pa.table({name: column for name, column in columns.items() if column is not None}), file)
    with pytest.raises(ValueError, match=rf"part-00000\.arrow cannot be read: .*{message}"):
        PreparedRows(tmp_path, vocab_size=60, max_length=16)


def test_a_damaged_file_is_an_error_or_gives_rows_within_its_limits(tmp_path):
    """Flip any byte: there is no crash, and no id, length or position on which a model would fail."""
    packed(tmp_path)
    file = tmp_path / "part-00000.arrow"
    whole = file.read_bytes()
    refused = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0x80 if place % 2 else 0xFF
        file.unlink()
        file.write_bytes(content)
        try:
            rows = PreparedRows(tmp_path, vocab_size=60, max_length=16)
        except ValueError:
            refused += 1
            continue
        for row in (rows[k] for k in range(len(rows))):
            ids, labels = row["input_ids"], row["shift_labels"]
            assert 1 <= len(ids) == len(labels) <= 16 and ids.max() < 60 and labels.max() < 60
            assert (labels >= IGNORED).all()
            assert "position_ids" not in row or ((0 <= row["position_ids"]).all() and row["position_ids"].max() < 16)
    assert refused > 100
