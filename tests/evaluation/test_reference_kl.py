"""Test the divergence from a reference: never negative, 0 for the same model."""

import torch
from tiny import some_ids, tiny_model
from torch.testing import assert_close

from scratch_gpt.evaluation.reference_kl import kl_estimate, kl_from_reference, sample_answers


def test_the_kl_estimate_is_never_negative_and_the_divergence_on_average():
    p, q = torch.randn(2, 50).log_softmax(-1)
    estimates = kl_estimate(q - p)
    assert (estimates >= 0).all()
    assert_close((p.exp() * estimates).sum(), (p.exp() * (p - q)).sum())


def test_a_model_has_not_drifted_from_its_answers_and_another_has():
    model = tiny_model()
    answers = sample_answers(model, [*some_ids(5, 6).tolist(), [3, 4]], eos_token_id=7, max_new_tokens=9)
    assert ((answers["shift_labels"] == -100) == (answers["reference_losses"] == 0)).all()
    assert answers["shift_labels"][5, 0] == -100 != answers["shift_labels"][5, 1]
    assert kl_from_reference(model, answers) == 0.0 < 0.1 < kl_from_reference(tiny_model(seed=1), answers)
