"""Laws of the pipeline: the texts of a row are found wherever they are."""

from scratch_gpt.data.prepared.pipeline import texts_of, with_texts


def test_texts_of_a_row_are_found_wherever_they_lie():
    row = {"prompt": "a", "n": 3, "messages": [{"content": "b"}, {"content": None}], "answers": ["c", "d"]}
    assert [*texts_of(row)] == ["a", "b", "c", "d"]
    assert [*texts_of(with_texts(row, str.upper))] == ["A", "B", "C", "D"]
    assert with_texts(row, str)["n"] == 3
