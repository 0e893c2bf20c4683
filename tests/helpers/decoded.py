"""Helpers for the tests of decoders."""

import torch
from tiny import tiny_gpt2

from scratch_gpt.generation.decoder import make_decoder


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def scored(decoder, ids, mask, prompt: int) -> torch.Tensor:
    """The logits of every position from the prompt's last on, three new tokens at a time."""
    logits = [decoder.start(ids[:, :prompt], mask[:, :prompt], ids.shape[1])]
    for at in range(prompt, ids.shape[1], 3):
        logits.append(decoder.step(ids[:, at : at + 3], mask[:, : at + 3]))
    return torch.cat(logits, 1)


def guessing(source: str, model) -> dict:
    """`generate`'s options for guesses from the prompt, by the model in int8, or by a stranger of its vocabulary."""
    if source == "prompt":
        return {"prompt_lookup_num_tokens": 5}
    if source == "int8":
        return {"assistant_model": make_decoder(model, "int8")}
    return {"assistant_model": tiny_gpt2(vocab_size=model.config.vocab_size), "num_assistant_tokens": 2}
