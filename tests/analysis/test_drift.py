"""Test drift: a model has not drifted from itself, and the largest changes come first."""

import pytest
import torch
from stories import SUN as STORY
from tiny import some_ids, tiny_model

from scratch_gpt.analysis.drift import kl_divergence, prompt_drift, text_drift
from scratch_gpt.analysis.probe_prompts import OFF_DOMAIN, SENSITIVE
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import Windows
from scratch_gpt.evaluation.losses import mean_losses
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt.train.objectives import causal_lm


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([STORY], vocab_size=300)


def batches() -> list:
    windows = Windows(some_ids(1, 61)[0].numpy(), 16)
    return [(collate_rows([windows[k]]), True) for k in range(len(windows))]


def test_the_divergence_of_equal_distributions_is_0_and_otherwise_positive():
    one, other = torch.randn(2, 5, 99)
    assert kl_divergence(one, one + 3).abs().max() < 1e-5  # a constant changes no probability
    assert (kl_divergence(one, other) > 0).all()
    exact = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (one, other)))
    torch.testing.assert_close(kl_divergence(one, other), exact)


def test_a_model_has_not_drifted_from_itself(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer))
    prompts = [encode(tokenizer, probe.prompt)[:20] for probe in OFF_DOMAIN]
    found, rows = prompt_drift(model, model, tokenizer, OFF_DOMAIN, prompts, max_new_tokens=4)
    assert found == {"kl": 0, "changed": 0} and rows == []


def test_drift_on_text_reports_the_separate_losses_of_both_models():
    tuned, base = tiny_model(seed=1), tiny_model()
    found = text_drift(tuned, base, batches())
    losses = [mean_losses(model, batches(), causal_lm)["loss"] for model in (tuned, base)]
    assert [found["loss"], found["base_loss"]] == pytest.approx(losses, rel=1e-5) and found["kl"] > 0.1
    assert text_drift(base, base, batches())["kl"] == pytest.approx(0, abs=1e-6)


def test_the_largest_drift_comes_first(tokenizer):
    tuned, base = (tiny_model(seed=seed, vocab_size=len(tokenizer)) for seed in (1, 0))
    prompts = [encode(tokenizer, probe.prompt)[:20] for probe in SENSITIVE]
    found, rows = prompt_drift(tuned, base, tokenizer, SENSITIVE, prompts, max_new_tokens=4)
    assert [row["kl"] for row in rows] == sorted((row["kl"] for row in rows), reverse=True)
    assert found["changed"] == sum(row["base"] != row["tuned"] for row in rows) / len(SENSITIVE)


def test_models_of_two_vocabularies_are_not_compared():
    with pytest.raises(ValueError, match="has 99 tokens and its base 50"):
        text_drift(tiny_model(), tiny_model(vocab_size=50), batches())
