"""Test the pipeline: the texts of a row are found in every form of row."""

from scratch_gpt.data.prepared.pipeline import texts_of, with_texts


def test_texts_are_found_in_every_form_of_row():
    row = {"prompt": "a", "n": 3, "messages": [{"content": "b"}, {"content": None}], "answers": ["c", "d"]}
    assert [*texts_of(row)] == ["a", "b", "c", "d"]
    assert [*texts_of(with_texts(row, str.upper))] == ["A", "B", "C", "D"]
    assert with_texts(row, str)["n"] == 3
