"""Test scored answers: scores equal those of SQuAD."""

import pytest

from scratch_gpt.evaluation.answers import answer_metrics, exact_match, token_f1


def test_answers_are_scored_as_squad_scores_them():
    assert exact_match("The sea, of course!", "sea of course") and not exact_match("the seas", "the sea")
    assert token_f1("He goes to the park.", "he goes to a park every day") == pytest.approx(2 * 4 / (4 + 6))
    assert token_f1("no no no", "no") == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("", "") == token_f1("The", "!") == 1 and token_f1("", "sea") == 0
    assert answer_metrics(["sea", "sun"], ["Sea.", "rain"]) == {"exact_match": 0.5, "f1": 0.5}
    with pytest.raises(ValueError, match="1 answers and 0 references"):
        answer_metrics(["sea"], [])
