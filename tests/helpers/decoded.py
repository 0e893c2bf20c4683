"""Helpers for the tests of decoders."""

import torch
from tiny import tiny_gpt2

from scratch_gpt.generation.decoder import make_decoder


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def stepwise_logits(decoder, ids, mask, prompt: int) -> torch.Tensor:
    """Return the logits from the prompt's last position to the end, decoded three tokens at a time."""
    logits = [decoder.start(ids[:, :prompt], mask[:, :prompt], ids.shape[1])]
    for at in range(prompt, ids.shape[1], 3):
        logits.append(decoder.step(ids[:, at : at + 3], mask[:, : at + 3]))
    return torch.cat(logits, 1)


def speculation_options(source: str, model) -> dict:
    """Return options of `generate` for guesses from the prompt, the model in int8, or another small model."""
    if source == "prompt":
        return {"prompt_lookup_num_tokens": 5}
    if source == "int8":
        return {"assistant_model": make_decoder(model, "int8")}
    return {"assistant_model": tiny_gpt2(vocab_size=model.config.vocab_size), "num_assistant_tokens": 2}
