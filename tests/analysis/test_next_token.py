"""Test next-token losses: those of an answer do not depend on its batch."""

import torch
from tiny import tiny_model

from scratch_gpt.analysis.next_token import answer_losses, next_token_logits


def test_an_answers_losses_do_not_depend_on_the_batch():
    model = tiny_model()
    rows, answer = [[5, 6, 7], [8], [9, 10]], [3, 4]
    together = answer_losses(model, rows, answer)
    for row, losses in zip(rows, together, strict=True):
        logits = model(torch.tensor([[*row, *answer]])).logits[0, len(row) - 1 : -1]
        torch.testing.assert_close(losses, -logits.log_softmax(-1)[[0, 1], answer])
        torch.testing.assert_close(next_token_logits(model, [row])[0], logits[0].detach())
