"""Test the comparison in `make servers`: equal answers, ties and errors. The servers run there."""

import sys

import pytest
from places import TESTS


sys.path.append(str(TESTS / "servers"))

from ask_servers import compare


ROW = {
    "prompt": "a",
    "new": [1, 2, 3],
    "texts": ["", "x", "xy", "xyz"],
    "second": [7, 8, 9],
    "tied_texts": ["p", "xq", "xyr"],
    "ahead": [1.0, 1e-4, 1.0],
}


@pytest.mark.parametrize("answer", [[1, 2, 3], "xyz"])
def test_an_equal_answer_passes(answer):
    assert compare(ROW, answer, 1e-3) is None


@pytest.mark.parametrize("answer", [[1, 8, 5], "xq?"])
def test_a_tie_is_reported_and_ends_the_comparison(answer):
    assert compare(ROW, answer, 1e-3) == "prompt 'a': a tie after 1 ids, the best two logits are 0.0001 apart"


@pytest.mark.parametrize(
    "answer",
    [
        *([7, 2, 3], [1, 2, 9], "pyz", "xyr"),  # the second best, but not at a tie
        *([1, 5, 3], "x?z"),  # at a tie, but not the second best
        *([1], [1, 2], [], [1, 2, 3, 4], "x", "", "xyzz"),  # too short or too long
    ],
)
def test_another_answer_is_an_error(answer):
    with pytest.raises(ValueError, match=r"prompt 'a': \d of 3 ids equal, then"):
        compare(ROW, answer, 1e-3)
