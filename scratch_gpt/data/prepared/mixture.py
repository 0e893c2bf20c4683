"""Mix corpora: order their documents so that every stretch contains the corpora in about the requested shares.

Each corpus is shuffled by seed and epoch. Document j of corpus i is placed at
time(i, j) = (tokens of i before j + half of j) / share_i. In the order of these times a corpus is never more than
about a document ahead of or behind its share, and neighbors come from different sources if the shares allow it. Shares
count tokens, not documents. The order depends only on lengths, shares and seed, so there is nothing to save.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np


# As in `datasets.interleave_datasets`, applied to epochs. first_exhausted: stop as soon as one corpus has had one
# epoch. all_exhausted: stop when every corpus has had at least one epoch, and repeat the small ones until then.
# all_exhausted_without_replacement: exactly one epoch of each; the shares hold until the first corpus ends.
Stopping = Literal["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"]


class Mixture(NamedTuple):
    """The n-th document of the mixture is document number `document[n]` of the corpus `names[source[n]]`."""

    names: list[str]
    source: np.ndarray  # (N,) int16
    document: np.ndarray  # (N,) int32
    tokens: dict[str, int]  # tokens of each corpus in the mixture
    epochs: dict[str, float]  # number of epochs of each corpus

    @property
    def shares(self) -> dict[str, float]:
        """Return each corpus' share of the mixture's tokens."""
        total = sum(self.tokens.values())
        return {name: count / total for name, count in self.tokens.items()}


def target_shares(
    tokens: Mapping[str, int], weights: Mapping[str, float] | None = None, alpha: float = 0.7
) -> dict[str, float]:
    """Return the shares of the mixture: explicit `weights`, made to sum to 1, or p_i proportional to w_i^alpha.

    w_i is a corpus' share of all tokens; alpha < 1 gives small corpora more than that (Conneau & Lample 2019,
    "Cross-lingual Language Model Pretraining", section 3.1).

    Raises:
        ValueError: alpha is outside (0, 1], a weight is not a positive number, or the names of weights and corpora
            differ.

    Example:
        >>> target_shares({"books": 9_000, "web": 1_000}, alpha=0.5)
        {'books': 0.75, 'web': 0.25}
        >>> target_shares({"books": 9_000, "web": 1_000}, weights={"books": 1, "web": 1})
        {'books': 0.5, 'web': 0.5}
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, not {alpha}.")
    if weights is None:
        weights = {name: count**alpha for name, count in tokens.items()}
    if set(weights) != set(tokens):
        raise ValueError(f"Weights are given for {', '.join(weights)}, but the corpora are {', '.join(tokens)}.")
    for name, weight in weights.items():
        if not 0 < weight < math.inf:
            raise ValueError(f"The weight of {name} must be a positive number, not {weight}.")
    total = sum(weights.values())
    return {name: weights[name] / total for name in tokens}


def mix(
    lengths: Mapping[str, np.ndarray],
    shares: Mapping[str, float],
    seed: int = 0,
    stopping_strategy: Stopping = "all_exhausted",
    epochs: Mapping[str, float] | None = None,
) -> Mixture:
    """Return the mixture: its documents in order.

    Args:
        lengths: for each corpus the number of tokens of its documents, (documents,).
        epochs: for each corpus its number of epochs; replaces `shares` and `stopping_strategy`.

    Raises:
        ValueError: a corpus has no documents, the strategy is unknown, or epochs are not positive.
    """
    if stopping_strategy not in get_args(Stopping):
        raise ValueError(
            f"stopping_strategy must be one of {', '.join(get_args(Stopping))}, not {stopping_strategy!r}."
        )
    for name, document_lengths in lengths.items():
        if len(document_lengths) == 0:
            raise ValueError(f"The corpus {name} has no documents left.")
    tokens = {name: int(np.sum(document_lengths)) for name, document_lengths in lengths.items()}
    if epochs is not None:
        if set(epochs) != set(lengths):
            raise ValueError(f"Epochs are given for {', '.join(epochs)}, but the corpora are {', '.join(lengths)}.")
        for name, count in epochs.items():
            if not 0 < count < math.inf:
                raise ValueError(f"The epochs of {name} must be a positive number, not {count}.")
        total = sum(tokens[name] * epochs[name] for name in lengths)
        shares = {name: tokens[name] * epochs[name] / total for name in lengths}
        end = float(total)
    else:
        due = [tokens[name] / shares[name] for name in lengths]  # the time at which each corpus ends
        end = min(due) if stopping_strategy == "first_exhausted" else max(due)
    once = epochs is None and stopping_strategy == "all_exhausted_without_replacement"

    times, sources, documents = [], [], []
    for i, (name, document_lengths) in enumerate(lengths.items()):
        passes = 1 if once else math.ceil(end * shares[name] / tokens[name] - 1e-9)
        order = np.concatenate(
            [np.random.default_rng([seed, i, epoch]).permutation(len(document_lengths)) for epoch in range(passes)]
        )
        token_counts = np.asarray(document_lengths, dtype=np.float64)[order]
        time = (np.cumsum(token_counts) - token_counts / 2) / shares[name]
        inside = slice(None) if once else slice(max(1, int(np.searchsorted(time, end * (1 + 1e-12)))))
        times.append(time[inside])
        documents.append(order[inside])
        sources.append(np.full(len(order[inside]), i))
    sequence = np.argsort(np.concatenate(times), kind="stable")
    source = np.concatenate(sources)[sequence].astype(np.int16)
    document = np.concatenate(documents)[sequence].astype(np.int32)
    counts = {name: int(np.sum(np.asarray(lengths[name])[document[source == i]])) for i, name in enumerate(lengths)}
    return Mixture([*lengths], source, document, counts, {name: counts[name] / tokens[name] for name in lengths})


__all__ = ["Mixture", "Stopping", "mix", "target_shares"]
