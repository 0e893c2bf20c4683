"""Test the spread over seeds."""

import pytest

from scratch_gpt.evaluation.statistics import spread


def test_spread_is_mean_and_sample_deviation():
    found = spread([{"test": {"accuracy": value}} for value in (0.9, 0.8, 1.0)])
    assert found["test"]["accuracy"] == pytest.approx({"mean": 0.9, "std": 0.1, "n": 3})
