"""Test memorization: exposure is at chance level in an untrained model and maximal for a memorized secret."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stories import SUN as STORY
from tiny import tiny_model

from scratch_gpt.analysis.memorization import Secret, exposure, lookalikes, secret_metrics
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.tokenization.training import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([STORY], vocab_size=300)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=40), st.floats(-50, 0))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_exposure_is_between_0_and_that_of_rank_1(others, logp):
    most = math.log2(len(others) + 1)
    assert -1e-9 <= exposure(logp, others) <= most + 1e-9
    assert exposure(1.0, others) == most and exposure(-51.0, others) == 0


def test_lookalikes_have_the_pattern_of_the_secret_and_differ_from_it():
    found = lookalikes("aB-17", 200, seed=3)
    assert len({*found}) == 200 and "aB-17" not in found and found == lookalikes("aB-17", 200, seed=3)
    assert all(text[0].islower() and text[1].isupper() and text[2] == "-" and text[3:].isdigit() for text in found)
    with pytest.raises(ValueError, match="Fewer than 10 other texts have the shape of '7'"):
        lookalikes("7", 10)


def test_an_untrained_model_has_the_exposure_of_chance(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer))
    draw = random.Random(0)
    secrets = [Secret(f"The code of day {n} is", f"{draw.randrange(10**4):04}") for n in range(47)]
    found, rows = secret_metrics(model, tokenizer, secrets, 64, sample=63, batch_size=512)
    spread = 1.44 / math.sqrt(len(secrets))  # the standard deviation of log2 of a uniform rank is log2 e
    assert abs(found["exposure"] - math.log2(math.e)) < 4 * spread and found["extracted"] == 0 and len(rows) == 47


def test_a_memorized_secret_has_rank_1_and_is_generated(tokenizer):
    model, secret = tiny_model(vocab_size=len(tokenizer)), Secret("The code is", "4071")
    ids = torch.tensor([encode(tokenizer, "The code is 4071")])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(30):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found, _ = secret_metrics(model, tokenizer, [secret], 64, sample=63)
    assert found == {"exposure": 6, "extracted": 1}
