"""Test words: they are runs of letters, with the same hashes in every process and at every position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.filters import words as rooms_words
from scratch_gpt.data.filters.words import run_hashes, runs_of_texts, words


def prose(n: int, seed: int = 0) -> list[str]:
    """Return n words that are different for each seed."""
    return [f"w{seed}x{k}" for k in np.random.default_rng(seed).permutation(n)]


SHORT = st.text(st.sampled_from([*"abC1 2-+*/#%&@^.,\n\0", "\u2212", "\u4e00", "\u0301", "\u00e9"]), max_size=12)


@given(
    texts=st.lists(SHORT, max_size=8),
    n=st.integers(1, 4),
    signs=st.booleans(),
    batch=st.sampled_from([4, 20, 1000]),
)
@settings(deadline=None, max_examples=300)
def test_texts_processed_together_have_the_same_words_and_runs(texts, n, signs, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms_words, "BATCH", batch)
        together = [*runs_of_texts(texts, n, signs)]
    assert len(together) == len(texts)
    for text, (found, runs) in zip(texts, together, strict=True):
        alone = words(text, signs)
        assert [column.tolist() for column in found] == [column.tolist() for column in alone]
        assert runs.tolist() == run_hashes(alone.hashes, n).tolist()


@given(text=st.text())
@settings(deadline=None, max_examples=200)
def test_words_are_runs_of_letters_and_case_does_not_matter(text):
    found = words(text)
    spans = [text[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
    assert all(spans) and "".join(spans).split() == ["".join(spans)] * bool(spans)
    assert all(a <= b for a, b in zip(found.ends[:-1], found.starts[1:], strict=True))
    outside = "".join(np.delete(list(text), [k for s, e in zip(*found[1:], strict=True) for k in range(s, e)]))
    assert not any(map(str.isalnum, outside))
    same = dict(zip(spans, found.hashes.tolist(), strict=True))
    assert [same[span] for span in spans] == found.hashes.tolist()
    ascii_words = [word.lower() for word in same if word.isascii()]
    assert len({same[word] for word in same if word.isascii()}) == len(set(ascii_words))


def test_hashes_are_the_same_in_every_process():
    assert words("The cat, the CAT!").hashes.tolist()[::2] == words("the").hashes.tolist() * 2
    assert words("Hello world").hashes.tolist() == [6884409850674639192, 12205249571705939701]


def test_scripts_without_spaces_are_split_by_character():
    assert len(words("\u4f60\u597d\u4e16\u754c, hello").hashes) == 5
    assert len(words("\u0928\u092e\u0938\u094d\u0924\u0947").hashes) == 1  # Hindi, with marks, is one word


@given(n=st.integers(1, 140), extra=st.integers(0, 30))
@settings(deadline=None)
def test_a_run_has_the_same_hash_at_every_position(n, extra):
    hashes = words(" ".join(prose(n + extra))).hashes
    runs = run_hashes(hashes, n)
    assert len(runs) == extra + 1 == len(set(runs.tolist()))
    assert [run_hashes(hashes[k : k + n], n)[0] for k in range(extra + 1)] == runs.tolist()
    assert not len(run_hashes(hashes[: n - 1], n))


def test_signs_are_words_if_requested():
    def join_words(text: str) -> str:
        _, starts, ends = words(text, signs=True)
        return " ".join(text[start:end] for start, end in zip(starts, ends, strict=True))

    for text, expected in {
        "What is 12 - 7?": "What is 12 - 7",
        "12-7, -5 and x+1": "12 - 7 - 5 and x + 1",
        "C# and C++, not C.": "C# and C++ not C",
        "x*y, a / b; 50% of R&D": "x * y a / b 50 % of R & D",
        "a<b, 5 \u20ac, \u2611 \U0001f44d": "a < b 5 \u20ac \u2611 \U0001f44d",
        "# Heading\n- a *very* well-known - or **bold** - dash -- one\n* * * *": (
            "Heading a very well known or bold dash one"
        ),
    }.items():
        assert join_words(text) == expected
        assert words(text).hashes.tolist() == words(expected).hashes.tolist()  # the default ignores signs
    minus = words("12 - 7", signs=True).hashes.tolist()
    assert minus == words("12\u22127", signs=True).hashes.tolist() == words("12 \u2013 7", signs=True).hashes.tolist()


def test_signs_are_seen_across_the_border_of_a_slice(monkeypatch):
    text = "is x * y or 12 - 7 more than a / b in C# and C++ " * 9
    expected = words(text, signs=True).hashes.tolist()
    for size in (16, 37, 50):
        monkeypatch.setattr(rooms_words, "SLICE", size)
        rooms_words._powers.cache_clear()
        assert words(text, signs=True).hashes.tolist() == expected
    rooms_words._powers.cache_clear()
