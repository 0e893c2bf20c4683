"""Shares that are held out -> which documents go where: a function of their number and the seed."""

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
        ValueError: as `check_fractions`, or fewer documents than splits.
    """
    asked = check_fractions(validation_fraction, test_fraction)
    if n < 1 + len(asked):
        raise ValueError(f"{n} documents cannot be split into train, {' and '.join(asked)}. Set a fraction to 0.")
    order = np.random.default_rng(seed).permutation(n)
    splits = {}
    for name, fraction in asked.items():
        take = min(max(1, round(fraction * n)), len(order) - 1)
        splits[name], order = np.sort(order[:take]), order[take:]
    return {"train": np.sort(order), **splits}


__all__ = ["check_fractions", "split_numbers"]
