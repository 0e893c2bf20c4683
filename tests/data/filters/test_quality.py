"""Test quality filters: every rule has a reason, block lists match complete words, outliers follow the scores."""

import numpy as np
import pytest
from places import REPO

from scratch_gpt.data.filters.quality import (
    QualityRules,
    blocked_term,
    load_block_list,
    perplexity_outliers,
    quality_problem,
)


SENTENCES = [
    "The house stood on a hill above the town, and nobody had lived in it since the old captain died.",
    "Every spring the children dared each other to climb the wall, though few of them ever did.",
    "Inside there were clocks that had stopped at different hours and a piano with eleven keys missing.",
    "When the new owner came she opened all the windows, and for a week the whole street smelled of dust.",
]
PROSE = "\n".join(SENTENCES)


# --- Quality -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PROSE, None),
        ("Too few words.", "too_short"),
        ("", "too_short"),
        ("word " * 100_001, "too_long"),
        ("I a b " * 20, "word_length"),
        ("incomprehensibilities " * 50, "word_length"),
        (PROSE + " ##" * 9, "symbols"),
        (PROSE + " wait..." * 15, "symbols"),
        ("123 4567 89,0 " * 20 + PROSE, "not_words"),
        ("- " + PROSE.replace("\n", "\n- "), "bullets"),
        (PROSE.replace("\n", "...\n"), "ellipses"),
        ("\n".join([*SENTENCES, *SENTENCES[:3]]), "repetition"),
        (" ".join([*SENTENCES, SENTENCES[0]]), "repetition"),
    ],
)
def test_every_rule_has_its_reason(text, problem):
    assert quality_problem(text) == problem


def test_a_rule_set_to_none_is_skipped():
    off = QualityRules(**{name: None for name in QualityRules.__dataclass_fields__ if name != "languages"})
    for text in ("", "#", "-...", "a\na\na", "1 2 3"):
        assert quality_problem(text, rules=off) is None


def test_languages_are_distinguished(data):
    off = {name: None for name in QualityRules.__dataclass_fields__ if name != "languages"}
    for file in sorted((data / "multilingual").glob("*.txt")):
        code, text = file.stem.removeprefix("udhr_"), file.read_text(encoding="utf-8")
        assert quality_problem(text, rules=QualityRules(**{**off, "languages": (code,)})) is None, file.name
        other = ("de",) if code != "de" else ("en", "fr")
        assert quality_problem(text, rules=QualityRules(**{**off, "languages": other})) == "language", file.name


# --- Block lists -------------------------------------------------------------------------------------------------


def test_block_lists_match_complete_words_in_any_case_and_patterns_exactly(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("# a comment\n\nbad\nvery  bad word # why\nC++\n/[Ff]oo{2,}/ # a pattern\n", encoding="utf-8")
    patterns = load_block_list(file)
    found = {"BAD news": "BAD", "badly": None, "a Very\nbad  word": "Very\nbad  word", "c++ code": "c++", "why": None}
    found |= {"Fooo": "Fooo", "FOOO": None, "fo": None, "": None}
    assert {text: blocked_term(text, patterns) for text in found} == found


def test_words_of_unspaced_scripts_are_found_in_running_text_and_a_byte_order_mark_is_ignored(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("\u67aa\u652f\nAI\nKI\u52a9\u624b\n\u0e1b\u0e37\u0e19\n", encoding="utf-8-sig")
    patterns = load_block_list(file)
    found = {"\u4ed6\u4e70\u67aa\u652f\u5417": "\u67aa\u652f", "\u4f7f\u7528AI\u5de5\u5177": "AI"}
    found |= {"MAIL": None, "\u00fcAI": None, "\u4e00KI\u52a9\u624b\u4e00": "KI\u52a9\u624b", "SKI\u52a9\u624b": None}
    found |= {"\u0e21\u0e35\u0e1b\u0e37\u0e19\u0e2b\u0e25\u0e32\u0e22": "\u0e1b\u0e37\u0e19"}
    assert {text: blocked_term(text, patterns) for text in found} == found


@pytest.mark.parametrize(
    ("content", "message"),
    [("ok\n/a(b/\n", r"list.txt, line 2: /a\(b/ is not a valid pattern"), ("# nothing\n", "contains no words")],
)
def test_a_bad_block_list_is_a_one_line_error(content, message, tmp_path):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_block_list(tmp_path / "list.txt")
    assert "\n" not in str(caught.value)


def test_an_absent_block_list_is_a_one_line_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load_block_list(tmp_path / "absent.txt")


def test_the_shipped_list_matches_weaknesses_and_not_prose():
    root = REPO
    patterns = load_block_list(root / "training" / "configs" / "block_lists" / "cwe.txt")
    assert blocked_term("A Use-After-Free in the parser", patterns) == "Use-After-Free"
    assert blocked_term("see CVE-2021-44228", patterns) == "CVE-2021-44228"
    assert blocked_term("GET /../../../../etc/passwd", patterns) == "../../../../"
    assert blocked_term(PROSE, patterns) is None


# --- Perplexity --------------------------------------------------------------------------------------------------


def test_perplexity_outliers_are_above_mean_and_three_sigma_of_the_perplexity():
    losses = np.random.default_rng(0).normal(3, 0.1, 500)
    losses[[7, 300]] = 6.0
    flagged = perplexity_outliers(losses)
    assert np.flatnonzero(flagged).tolist() == [7, 300] and flagged.dtype == bool
    perplexity = np.exp(losses)
    assert (flagged == (perplexity > perplexity.mean() + 3 * perplexity.std())).all()
    assert (perplexity_outliers(losses + 2000) == flagged).all()  # exp(2000) overflows
    assert not perplexity_outliers(np.full(9, 2.0)).any()


def test_a_text_that_was_not_scored_is_not_flagged_and_changes_nothing():
    losses = np.r_[np.full(200, 3.0), 9.0]
    with_gaps = np.r_[losses, np.nan, np.nan]
    assert (perplexity_outliers(with_gaps) == np.r_[perplexity_outliers(losses), False, False]).all()
    assert perplexity_outliers(losses).sum() == 1
    assert not perplexity_outliers(np.array([np.nan])).any() and not len(perplexity_outliers(np.array([])))
