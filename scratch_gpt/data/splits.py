"""Shares that are held out -> which documents go where: a function of their number and the seed."""

import hashlib
from collections.abc import Sequence

import numpy as np


def check_fractions(validation_fraction: float, test_fraction: float) -> dict[str, float]:
    """Those of {"validation", "test"} that are more than 0; ValueError for no share, or nothing left to train on."""
    fractions = {"validation": validation_fraction, "test": test_fraction}
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"{name}_fraction is {fraction}; it has to be at least 0 and less than 1.")
    if sum(fractions.values()) >= 1:
        raise ValueError(
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction} leave nothing to train on."
        )
    return {name: fraction for name, fraction in fractions.items() if fraction > 0}


def split_numbers(
    n: int, validation_fraction: float = 0.1, test_fraction: float = 0.0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Which of n documents go where, in order: {"train", "validation", "test"}.

    Raises:
        ValueError: as `check_fractions`, or too few documents to leave something in each split.
    """
    asked = check_fractions(validation_fraction, test_fraction)
    if n < 1 + len(asked):
        raise ValueError(f"{n} documents cannot be split into train, {' and '.join(asked)}. Set a fraction to 0.")
    order = np.random.default_rng(seed).permutation(n)
    splits = {}
    for name, fraction in asked.items():
        take = min(max(1, round(fraction * n)), len(order) - 1)
        if take == 0:
            raise ValueError(
                f"{n} documents leave nothing for {name} beside the other splits. Set a fraction to 0, or lower one."
            )
        splits[name], order = np.sort(order[:take]), order[take:]
    return {"train": np.sort(order), **splits}


def split_groups(
    keys: Sequence[str], validation_fraction: float = 0.05, test_fraction: float = 0.1, seed: int = 0
) -> dict[str, np.ndarray]:
    """Which rows go where, in order: {"train", "validation", "test"}; rows with the same key stay together.

    Each split has its exact share of the rows, unless the last groups are too large for what is left of it. Who is
    first is decided by a hash of seed and key: a question that is held out in one file is held out in another one of
    about the same questions (a few at the border may differ), so that a model can be tuned on both in turn.

    Raises:
        ValueError: as `check_fractions`, or too few distinct keys to leave something in each split.
    """
    asked = check_fractions(validation_fraction, test_fraction)
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    room = {name: max(1, round(fraction * len(keys))) for name, fraction in reversed(asked.items())}
    splits: dict[str, list[int]] = {"train": [], **{name: [] for name in asked}}
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()):
        name = next((name for name, left in room.items() if len(groups[key]) <= left), "train")
        splits[name] += groups[key]
        if name in room:
            room[name] -= len(groups[key])
    if empty := [name for name, rows in splits.items() if not rows]:
        raise ValueError(
            f"{len(groups)} distinct texts in {len(keys)} rows leave nothing for {empty[0]}. Add rows, or set a "
            "fraction to 0."
        )
    return {name: np.array(sorted(rows), dtype=np.int64) for name, rows in splits.items()}


__all__ = ["check_fractions", "split_groups", "split_numbers"]
