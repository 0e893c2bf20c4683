"""Compute the mean and spread of metrics over seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def spread(results: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return {split: {metric: {"mean", "std", "n"}}} of several runs' {split: {metric: number}}; std with n - 1.

    A metric that a run lacks is omitted.

    Example:
        >>> spread([{"test": {"loss": 1.0}}, {"test": {"loss": 2.0}}, {"test": {"loss": 3.0}}])
        {'test': {'loss': {'mean': 2.0, 'std': 1.0, 'n': 3}}}
    """
    return {
        split: {
            name: _spread([result[split][name] for result in results])
            for name in values
            if all(name in result[split] for result in results)
        }
        for split, values in results[0].items()
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "n": len(values)}


def over_seeds(results: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return {metric: {"mean", "std", "n"}} of each seed's {metric: number}; for a single seed, its numbers."""
    return spread([{"": result} for result in results])[""] if len(results) > 1 else dict(results[0])


__all__ = ["over_seeds", "spread"]
