"""A batch of chosen and rejected answers, for the tests of preference losses and their metrics."""

from functools import partial

import torch
from tiny import some_ids, tiny_model

from scratch_gpt.train.preference_losses import read_answers


B, T = 4, 14


def batch_of(prompts, ends, *, seed=0, reference_seed=1) -> dict:
    """Return chosen and rejected rows with equal prompts, answers up to `ends`, and reference log-probabilities."""
    ids = some_ids(2 * B, T, seed=seed)
    ids[B:] = torch.where(torch.arange(T) < torch.tensor(prompts)[:, None], ids[:B], ids[B:])
    positions = torch.arange(T)
    starts, ends = torch.tensor([*prompts, *prompts])[:, None], torch.tensor(ends)[:, None]
    batch = {
        "input_ids": ids.where(positions < ends, 0),
        "shift_labels": ids.roll(-1, 1).where((positions >= starts - 1) & (positions < ends - 1), -100),
        "preference": torch.tensor([True, False, False, True]),
    }
    with torch.no_grad():
        batch["reference_logps"] = read_answers(tiny_model(seed=reference_seed), batch).logps
    return batch


MIXED = partial(batch_of, (3, 5, 2, 6), (14, 9, 5, 10, 7, 14, 11, 8))  # prompts and answers of different lengths
