"""Test pairwise judging: a position bias gives no winner, intervals are valid, known strengths are recovered."""

import math

import numpy as np
import pytest

from scratch_gpt.evaluation.pairwise import Verdict, bradley_terry, judge_pairs, wilson_interval, win_rates


def test_a_judge_with_a_position_bias_finds_no_winner(server):
    server.reply = lambda prompt: "1"
    verdicts = judge_pairs(server.judge(), ["p", "q"], {"a": ["x", "x"], "b": ["y", "y"]})
    (pair,) = win_rates(verdicts)
    assert (pair["win_rate"], pair["ties"], pair["n"], pair["first_place"]) == (0.5, 2, 2, 1.0)
    assert list(bradley_terry(verdicts).values()) == pytest.approx([0, 0], abs=1e-9)


def test_the_better_model_wins_in_both_orders(server):
    server.reply = lambda prompt: "1" if "<answer_1>\ngood" in prompt else "2"
    verdicts = judge_pairs(server.judge(), ["p", "q", "r"], {"a": ["bad"] * 3, "b": ["good"] * 3})
    (pair,) = win_rates(verdicts)
    assert (pair["a"], pair["win_rate"], pair["losses"], pair["first_place"]) == ("a", 0.0, 3, 0.5)
    assert pair["low"] < 1e-9 and 0.5 < pair["high"] < 0.6
    assert [*bradley_terry(verdicts)] == ["b", "a"]


def test_a_prompt_without_a_verdict_in_one_order_is_unclear():
    verdicts = [
        Verdict(0, "a", "b", 1.0),
        Verdict(0, "b", "a", None),
        Verdict(1, "a", "b", 1.0),
        Verdict(1, "b", "a", 0.0),
    ]
    (pair,) = win_rates(verdicts)
    assert (pair["n"], pair["unclear"], pair["win_rate"]) == (1, 1, 1.0)


def test_wilsons_interval_contains_the_share_and_is_symmetric():
    for n in (1, 7, 100):
        for successes in (0, n / 2, n):
            low, high = wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1
            assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_bradley_terry_recovers_known_strengths_in_any_order():
    truth = {"a": 1.0, "b": 0.2, "c": -1.2}
    generator = np.random.default_rng(0)
    verdicts = [
        Verdict(row, first, second, float(generator.random() < 1 / (1 + math.exp(truth[second] - truth[first]))))
        for row in range(2000)
        for first in truth
        for second in truth
        if first != second
    ]
    found = bradley_terry(verdicts)
    assert [*found] == ["a", "b", "c"] and sum(found.values()) == pytest.approx(0, abs=1e-9)
    assert found == pytest.approx(truth, abs=0.1)
    assert bradley_terry(verdicts[::-1]) == pytest.approx(found, abs=1e-6)


def test_two_models_strengths_are_the_log_odds_of_their_games_and_one_tie():
    verdicts = [Verdict(n, "a", "b", float(n < 3)) for n in range(4)]
    found = bradley_terry(verdicts)
    assert found["a"] - found["b"] == pytest.approx(math.log(3.5 / 1.5))
