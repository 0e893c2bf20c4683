"""Test wording: a number and its noun agree."""

from scratch_gpt.utils.wording import plural


def test_only_one_is_singular():
    texts = [plural(count, "row") for count in (0, 1, 2, 1000)]
    assert texts == ["0 rows", "1 row", "2 rows", "1,000 rows"]
    assert plural(2, "class", "classes") == "2 classes"
