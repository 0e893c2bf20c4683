"""Test the pipeline: the texts of a row are found in every form of row."""

import pyarrow as pa

from scratch_gpt.data.prepared.pipeline import Filter, clean_part, texts_of, with_texts


def test_texts_are_found_in_every_form_of_row():
    row = {"prompt": "a", "n": 3, "messages": [{"content": "b"}, {"content": None}], "answers": ["c", "d"]}
    assert [*texts_of(row)] == ["a", "b", "c", "d"]
    assert [*texts_of(with_texts(row, str.upper))] == ["A", "B", "C", "D"]
    assert with_texts(row, str)["n"] == 3


def test_filters_are_applied_in_turn_and_a_removed_row_stays_as_it_was():
    rows = pa.table({"text": ["keep me", "drop me", "short", "x secret"], "id": [1, 2, 3, 4]})
    seen = []

    def no_drop(texts):
        seen.append(list(texts))
        return ["drop" if "drop" in text else None for text in texts]

    filters = [
        Filter("mask", change=lambda text: text.replace("secret", "[KEY]")),
        Filter("both", problems=no_drop, change=str.upper),
        Filter("length", problems=lambda texts: ["too short" if len(text) < 6 else None for text in texts]),
    ]
    table = clean_part(rows, filters, key=lambda text: text.ljust(16).encode()[:16], text_column="text")
    assert seen == [["keep me", "drop me", "short", "x [KEY]"]]  # the texts as the filters before have left them
    assert table.column("text").to_pylist() == ["KEEP ME", "drop me", "short", "X [KEY]"]
    assert table.column("_removed").to_pylist() == [None, "both", "length", None]
    assert table.column("_why").to_pylist() == [None, "drop", "too short", None]
    assert table.column("_changed").to_pylist() == [["both"], [], ["both"], ["mask", "both"]]
    assert table.column("_bytes").to_pylist() == [7, 0, 0, 7]
    assert table.column("_key").to_pylist()[1:3] == [b" " * 16] * 2 and table.column("id").to_pylist() == [1, 2, 3, 4]
