"""Test mixtures: the target shares hold at every point, a seed fixes the order, no document is lost."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_gpt.data.prepared.mixture import mix, target_shares


corpora = st.dictionaries(
    st.sampled_from(["books", "code", "web", "wiki"]),
    st.lists(st.integers(1, 20), min_size=1, max_size=30).map(np.array),
    min_size=1,
)


def tokens(lengths) -> dict[str, int]:
    return {name: int(of_documents.sum()) for name, of_documents in lengths.items()}


@given(lengths=corpora, alpha=st.floats(0.05, 1))
def test_shares_sum_to_one_and_alpha_raises_small_corpora(lengths, alpha):
    counts = tokens(lengths)
    shares = target_shares(counts, alpha=alpha)
    assert math.isclose(sum(shares.values()), 1)
    natural = {name: count / sum(counts.values()) for name, count in counts.items()}
    smallest, largest = min(counts, key=counts.get), max(counts, key=counts.get)
    assert shares[smallest] >= natural[smallest] - 1e-12 and shares[largest] <= natural[largest] + 1e-12
    assert target_shares(counts, alpha=1.0) == pytest.approx(natural)


def test_the_shares_are_those_of_the_formula():
    shares = target_shares({"a": 900, "b": 100}, alpha=0.7)
    assert shares["a"] == pytest.approx(0.9**0.7 / (0.9**0.7 + 0.1**0.7))
    assert target_shares({"a": 900, "b": 100}, {"a": 1, "b": 3}) == {"a": 0.25, "b": 0.75}


@given(lengths=corpora, seed=st.integers(0, 99), strategy=st.sampled_from(["first_exhausted", "all_exhausted"]))
@settings(deadline=None)
def test_every_prefix_of_the_mixture_has_the_target_shares(lengths, seed, strategy):
    shares = target_shares(tokens(lengths))
    mixture = mix(lengths, shares, seed, strategy)
    given = np.array([lengths[mixture.names[s]][d] for s, d in zip(mixture.source, mixture.document, strict=True)])
    total = np.cumsum(given)
    for i, name in enumerate(mixture.names):
        ahead = np.cumsum(given * (mixture.source == i)) - shares[name] * total
        assert np.abs(ahead[:-1]).max(initial=0) <= 20 * len(lengths)  # the length of the longest document, per corpus


@given(lengths=corpora, seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_same_seed_gives_the_same_order_and_epochs_are_complete(lengths, seed):
    shares = target_shares(tokens(lengths))
    one, other = (mix(lengths, shares, seed) for _ in range(2))
    assert (one.source == other.source).all() and (one.document == other.document).all()
    for i, name in enumerate(one.names):
        given, n = one.document[one.source == i], len(lengths[name])
        for start in range(0, len(given) - n + 1, n):
            assert sorted(given[start : start + n]) == list(range(n))  # each epoch has every document once


@given(lengths=corpora)
@settings(deadline=None)
def test_without_replacement_each_document_comes_exactly_once(lengths):
    mixture = mix(lengths, target_shares(tokens(lengths)), 0, "all_exhausted_without_replacement")
    found = sorted(zip(mixture.source.tolist(), mixture.document.tolist(), strict=True))
    assert found == [(i, d) for i, name in enumerate(lengths) for d in range(len(lengths[name]))]
    assert mixture.tokens == tokens(lengths)


def test_all_exhausted_gives_each_corpus_at_least_once_and_first_exhausted_at_most_once():
    lengths = {"large": np.full(100, 10), "small": np.full(10, 10)}
    shares = {"large": 0.5, "small": 0.5}
    most, least = mix(lengths, shares), mix(lengths, shares, stopping_strategy="first_exhausted")
    assert most.epochs == {"large": 1, "small": 10} and least.epochs == {"large": 0.1, "small": 1}
    assert most.shares == least.shares == {"large": 0.5, "small": 0.5}


def test_neighbors_come_from_different_sources():
    lengths = {"a": np.full(50, 10), "b": np.full(50, 10)}
    source = mix(lengths, {"a": 0.5, "b": 0.5}).source
    assert (source[1:] != source[:-1]).all()
    lengths = {"a": np.full(60, 10), "b": np.full(20, 10), "c": np.full(20, 10)}
    source = mix(lengths, {"a": 0.6, "b": 0.2, "c": 0.2}).source
    assert not any((source[k : k + 4] == source[k]).all() for k in range(len(source) - 4))


def test_documents_are_shuffled_differently_in_each_epoch_and_for_each_seed():
    lengths = {"a": np.full(50, 10)}
    epochs = mix(lengths, {"a": 1.0}, epochs={"a": 2}).document
    assert epochs[:50].tolist() != epochs[50:].tolist()
    assert mix(lengths, {"a": 1.0}, seed=1).document.tolist() != epochs[:50].tolist()


def test_epochs_of_each_corpus_decide_the_shares():
    lengths = {"a": np.full(40, 10), "b": np.full(10, 10)}
    mixture = mix(lengths, {}, epochs={"a": 1, "b": 3.5})
    assert mixture.tokens == {"a": 400, "b": 350} and mixture.epochs == {"a": 1, "b": 3.5}


@pytest.mark.parametrize("alpha", [0, -1, 1.5, math.nan])
def test_alpha_outside_0_to_1_is_an_error(alpha):
    with pytest.raises(ValueError, match="alpha must be"):
        target_shares({"a": 1}, alpha=alpha)


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_weight_that_is_not_a_positive_number_is_an_error(weight):
    with pytest.raises(ValueError, match="weight of b must be"):
        target_shares({"a": 1, "b": 1}, {"a": 1, "b": weight})


def test_impossible_mixtures_are_errors():
    with pytest.raises(ValueError, match="corpora are a"):
        target_shares({"a": 1}, {"b": 1})
    with pytest.raises(ValueError, match="stopping_strategy"):
        mix({"a": np.ones(1)}, {"a": 1}, stopping_strategy="never")
    with pytest.raises(ValueError, match="no documents left"):
        mix({"a": np.ones(0)}, {"a": 1})
    with pytest.raises(ValueError, match="epochs of a must be a positive number, not 0"):
        mix({"a": np.ones(1)}, {"a": 1}, epochs={"a": 0})
