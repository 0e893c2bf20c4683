"""Helpers for the tests of exported models."""

from pathlib import Path

import torch

from scratch_gpt.generation.generate import generate


CONTEXT = 256


def save(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def greedy_tokens(model, ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """Decode `count` tokens greedily; return them and the lead of each one's logit over the second best."""
    tokens = generate(model, torch.tensor([ids]), max_new_tokens=count, temperature=0)
    with torch.no_grad():
        best = model(tokens[:, :-1]).logits[0, len(ids) - 1 :].topk(2).values
    return tokens[0, len(ids) :].tolist(), (best[:, 0] - best[:, 1]).tolist()


PROMPTS = ["The", "class Node:\n\n    def  ", "it's 12345 caf\u00e9s\t\u6f22 <x>", "Return a list of"]
# If the best two logits are closer than this, rounding decides between them (ggml's GELU is a table in fp16).
TIE = 0.01
