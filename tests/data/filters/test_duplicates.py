"""Test duplicate filters: equal and similar texts are found, others are not, results are deterministic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.filters import words as rooms_words
from scratch_gpt.data.filters.duplicates import (
    HashSet,
    SeenPassages,
    contaminated_share,
    exact_key,
    near_duplicates,
    ngram_hashes,
    signatures,
)
from scratch_gpt.data.filters.words import document_ngrams, words


def prose(n: int, seed: int = 0) -> list[str]:
    """Return n words that are different for each seed."""
    return [f"w{seed}x{k}" for k in np.random.default_rng(seed).permutation(n)]


# --- Words -------------------------------------------------------------------------------------------------------


def test_long_texts_are_processed_in_slices(monkeypatch):
    text = "  ".join(prose(300)) + "\n end. "
    whole, key = words(text), exact_key(text)
    for size in (16, 37, 1000):
        monkeypatch.setattr(rooms_words, "SLICE", size)
        rooms_words._powers.cache_clear()
        for column, same in zip(words(text), whole, strict=True):
            assert column.tolist() == same.tolist()
        assert exact_key(text) == key
    rooms_words._powers.cache_clear()


# --- Complete texts ----------------------------------------------------------------------------------------------


def test_exact_keys_ignore_spacing_and_unicode_form():
    assert exact_key(" a\tb\n\nc ") == exact_key("a b c") != exact_key("a bc")
    assert exact_key("caf\u00e9") == exact_key("cafe\u0301") != exact_key("cafe")
    assert exact_key("A") != exact_key("a") and exact_key("a.") != exact_key("a")
    assert exact_key("") == exact_key(" \n") and len(exact_key("x")) == 16
    assert exact_key("\ud800")  # half of a surrogate pair is accepted


def test_signatures_estimate_jaccard_similarity():
    shared, errors = prose(900), []
    for seed in range(1, 9):
        share = seed / 9
        ours, theirs = prose(900, 2 * seed), prose(900, 2 * seed + 1)
        cut = int(900 * share)
        texts = [" ".join(shared[:cut] + rest[cut:]) for rest in (ours, theirs)]
        sets = [set(document_ngrams([text], 5)[0].tolist()) for text in texts]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        a, b = signatures(texts, permutations=256)
        errors.append((a == b).mean() - exact)
    assert max(map(abs, errors)) < 4 * 0.5 / 16 and abs(np.mean(errors)) < 0.03


def test_a_signature_depends_only_on_its_text_and_the_seed():
    texts = [" ".join(prose(40, seed)) for seed in range(70)] + ["", "?!", "one two"]
    whole = signatures(texts)
    assert whole.shape == (73, 128) and whole.dtype == np.uint32
    parts = np.concatenate([signatures(texts[:3]), signatures(texts[3:64]), signatures(texts[64:])])
    assert (parts == whole).all()
    assert (signatures(texts, seed=1) != whole).mean() > 0.99
    assert (signatures([texts[0].upper().replace(" ", ", ")])[0] == whole[0]).all()
    assert (whole[-3] != whole[-2]).any()  # empty and punctuation only
    assert signatures([]).shape == (0, 128)


def test_a_signature_is_the_same_in_every_process():
    text = "the cat sat on the mat and looked at me"
    assert signatures([text], permutations=4)[0].tolist() == [477322054, 764917919, 272129512, 507665349]


def test_copies_join_the_first_of_their_cluster_and_other_texts_stay_separate():
    base, other = prose(400, 1), prose(400, 2)
    edited = [*base[:200], "new", *base[201:]]
    half = base[:200] + prose(200, 3)
    texts = [" ".join(x) for x in (other, base, half, edited, other[::-1], base, other)]
    marks = signatures(texts)
    found = near_duplicates(marks)
    assert found.tolist() == [0, 1, 2, 1, 4, 1, 0] and found.dtype == np.int64
    assert near_duplicates([marks[:2], marks[2:6], marks[6:]]).tolist() == found.tolist()
    assert near_duplicates(marks, threshold=1.0).tolist() == [0, 1, 2, 3, 4, 1, 0]
    assert not len(near_duplicates(marks[:0])) and not len(near_duplicates([]))


@pytest.mark.parametrize("ngram", [1, 5])
def test_questions_that_differ_in_a_sign_or_a_digit_are_not_copies(ngram):
    texts = [f"What is 12 {sign} 7?" for sign in "+-*/%^"] + ["What is 12 - 8?", "What is 12-7"]
    texts += ["Explain C# in a sentence.", "Explain C++ in a sentence.", "Explain C in a sentence."]
    found = near_duplicates(signatures(texts, ngram=ngram)).tolist()
    assert found == [0, 1, 2, 3, 4, 5, 6, 1, 8, 9, 10]


def test_pairs_that_share_a_text_are_one_cluster():
    a = np.arange(128, dtype=np.uint32)
    b, c = a.copy(), a.copy()
    b[:20] += 1000
    c[:40] += 1000  # agreement: 0.84 of a and b, 0.84 of b and c, 0.69 of a and c
    c[20:40] += 1000
    assert near_duplicates(np.stack([a, b, c])).tolist() == [0, 0, 0]
    assert near_duplicates(np.stack([a, c, b])).tolist() == [0, 0, 0]
    assert near_duplicates(np.stack([a, c])).tolist() == [0, 1]


def test_dissimilar_candidates_are_not_joined():
    rows = np.random.default_rng(0).integers(0, 2**32, (50, 128), dtype=np.uint32)
    rows[:, :32] = 7  # all share several bands and agree in a quarter of their positions
    assert near_duplicates(rows).tolist() == list(range(50))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: near_duplicates(np.zeros((2, 8), np.uint32), threshold=0), "threshold must be above 0"),
        (lambda: near_duplicates(np.zeros((2, 8), np.uint32), threshold=1.1), "above 0 and at most 1"),
        (lambda: signatures(["a"], ngram=0), "at least 1"),
        (lambda: SeenPassages(length=0), "at least 1 word"),
    ],
)
def test_numbers_out_of_range_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_four_editions_of_a_book_are_duplicates_and_different_books_are_not(data):
    editions = sorted((data / "near_duplicates").glob("*.txt"))
    books = sorted((data / "books").glob("*.txt"))
    texts = [file.read_text(encoding="utf-8") for file in [*editions, *books]]
    first = near_duplicates(signatures(texts))
    same = [file.name for file, cluster in zip(books, first[4:], strict=True) if cluster == 0]
    assert first[:4].tolist() == [0] * 4 and same == ["frankenstein.txt"]
    alone = [k for k, file in enumerate(books, start=4) if file.name not in same]
    assert len(alone) == 23 and first[alone].tolist() == alone


# --- Passages ----------------------------------------------------------------------------------------------------


def test_a_repeated_block_is_removed_at_any_position():
    first, fresh = prose(128), prose(50, 1)
    seen = SeenPassages()
    assert seen.remove(" ".join(first)) == (" ".join(first), 0)
    for place in (0, 17, 50):
        text = " ".join(fresh[:place]) + " " + ", ".join(first).upper() + "! " + " ".join(fresh[place:])
        left, removed = seen.remove(text)
        assert left.split() == fresh and removed == 128
    assert len(seen.blocks) == 1


def test_a_repeated_stretch_of_255_words_always_loses_a_block():
    text = prose(1000)
    for start in range(0, 745, 31):
        seen = SeenPassages()
        seen.remove(" ".join(text))
        again = text[start : start + 255]
        left, removed = seen.remove(" ".join(again))
        assert removed == 128 and len(left.split()) == 127 and set(left.split()) <= set(again)


def test_within_a_text_the_first_occurrence_stays():
    block, fresh = prose(128), prose(30, 1)
    left, removed = SeenPassages().remove(" ".join([*block, *fresh, *block, *fresh, *block]))
    assert left.split() == [*block, *fresh, *fresh] and removed == 256
    left, removed = SeenPassages().remove("no " * 1280)
    assert left.split() == ["no"] * 128 and removed == 1152


@given(lengths=st.lists(st.integers(1, 40), max_size=6), shared=st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_only_complete_passages_are_removed_and_the_rest_is_remembered(lengths, shared):
    texts = [prose(n, seed) + prose(shared, 99) for seed, n in enumerate(lengths)]
    once, seen = [], SeenPassages(length=8)
    for text in texts:
        left, removed = seen.remove(" ".join(text))
        assert len(text) - len(left.split()) == removed and removed % 8 == 0
        once.append(left)
    again = SeenPassages(length=8)
    assert [again.remove(" ".join(text))[0] for text in texts] == once
    assert again.blocks.new == seen.blocks.new
    for text in once:  # the second time no repeat of 2 * 8 - 1 words is left
        assert len(seen.remove(text)[0].split()) <= 8 * (1 + len(lengths))


def test_a_hash_set_behaves_like_a_set():
    rng, ours, theirs = np.random.default_rng(0), HashSet(), set()
    for size in (0, 1, 5, 3000, 40, 20_000, 7):
        some = rng.integers(0, 30_000, size, dtype=np.uint64) * np.uint64(2**40)
        ours.add(some)
        theirs |= set(some.tolist())
        assert len(ours) == len(theirs)
        queries = rng.integers(0, 30_000, 500, dtype=np.uint64) * np.uint64(2**40)
        assert ours.has(queries).tolist() == [value in theirs for value in queries.tolist()]
    assert len(ours.new) <= max(1024, len(ours) / 16) and (np.diff(ours.sorted) > 0).all()


# --- Contamination -----------------------------------------------------------------------------------------------


def test_contamination_and_passages_ignore_signs():
    hashes = ngram_hashes(["What is 12 - 7 in C#?"], n=5)
    assert contaminated_share("what is 12 + 7 in c++", hashes, n=5) == 1
    seen = SeenPassages(length=6)
    assert seen.remove("What is 12 - 7 in C#?")[1] == 0 and seen.remove("What is 12 + 7 in C++?")[1] == 6


def test_the_share_of_ngrams_of_an_evaluation_set():
    question, fresh = prose(20), prose(100, 1)
    hashes = ngram_hashes([" ".join(question), "Short one?", ""])
    assert hashes.dtype == np.uint64 and (np.diff(hashes) > 0).all() and len(hashes) == 8 + 1 + 1
    assert contaminated_share(", ".join(question).title(), hashes) == 1.0
    assert contaminated_share(" ".join(fresh), hashes) == 0.0
    assert contaminated_share(" ".join(fresh + question), hashes) == pytest.approx(8 / 108)
    assert contaminated_share("short ONE", hashes) == 1.0 and contaminated_share("short", hashes) == 0.0
    assert contaminated_share("anything", ngram_hashes([])) == 0.0
