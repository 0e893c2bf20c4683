"""Test recurring phrases: complete, neither too rare nor too common."""

from functools import partial

import pytest

from scratch_gpt.analysis.phrases import recurring_phrases


@pytest.mark.parametrize("longest", [1, 2, 6])
def test_recurring_phrases_are_complete_and_neither_too_rare_nor_too_common(longest):
    texts = [f"one {n} red barn {n + 50} shut" for n in range(4)] + [f"the {n} shut" for n in range(20)]
    found = recurring_phrases(texts, longest=longest, least=3, shares=(0, 0.2))
    assert found == (["barn", "one", "red"] if longest == 1 else ["one", "red barn"])
    assert partial(recurring_phrases, least=5, shares=(0, 0.2))(texts) == []
