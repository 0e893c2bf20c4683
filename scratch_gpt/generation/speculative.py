"""Guess the next tokens of a text, which the model then scores in one step (speculative decoding).

A guess changes only the speed. Each token is still drawn from the model's own distribution with the same random
numbers, and a guess is kept if it equals the drawn token. Guesses come from earlier text (PromptLookup) or from a
second model (Assistant).
"""

from collections.abc import Callable

import torch
from torch import nn

from .decoder import ForwardDecoder, make_decoder


Draw = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # logits (1, V) -> a token (1,)


class PromptLookup:
    """Guess up to `max_tokens` tokens: those that followed the last earlier occurrence of the text's end."""

    models: tuple[nn.Module, ...] = ()

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens

    def guess(
        self, ids: torch.Tensor, mask: torch.Tensor, max_tokens: int, draw: Draw, state: torch.Tensor
    ) -> torch.Tensor:
        return look_up(ids, min(max_tokens, self.max_tokens))


class Assistant:
    """Guess up to `max_tokens` tokens with a second model: a smaller one with the same vocabulary, or one in int8.

    It draws with the same random numbers as the model, so two similar models often draw the same token, not only at
    temperature 0. Leviathan et al. 2022 (arXiv:2211.17192) accept guesses by a separate draw, so a seed gives other
    tokens than without guesses; here the tokens of a seed stay the same.

    Args:
        columns: the largest number of tokens that the text will have.
    """

    def __init__(self, decoder: ForwardDecoder, max_tokens: int, columns: int):
        self.decoder, self.max_tokens = decoder, max_tokens
        self.models: tuple[nn.Module, ...] = (decoder.model,)
        self.columns = min(columns, decoder.config.max_position_embeddings)
        self.cached = 0  # number of tokens in its cache, including guesses

    def guess(
        self, ids: torch.Tensor, mask: torch.Tensor, max_tokens: int, draw: Draw, state: torch.Tensor
    ) -> torch.Tensor:
        """Guess (1, up to `max_tokens`) ids after the text (1, n); the mask covers later columns too."""
        n = ids.shape[1]
        max_tokens = min(max_tokens, self.max_tokens, self.columns - n)
        if max_tokens < 1:
            return ids[:, :0]
        generator = torch.Generator(ids.device).set_state(state)
        cached = min(self.cached, n - 1)  # before the last token, rejected guesses have been replaced
        new = ids[:, cached:]
        for m in range(n, n + max_tokens):
            mask_so_far = mask[:, :m]
            if cached:
                logits = self.decoder.step(new, mask_so_far)
            else:
                logits = self.decoder.start(new, mask_so_far, self.columns)
            new = draw(logits[:, -1], generator)[:, None]
            ids, cached = torch.cat([ids, new], 1), m
        self.cached = cached
        return ids[:, n:]


def make_guesser(
    decoder: ForwardDecoder,
    rows: int,
    columns: int,
    prompt_lookup_num_tokens: int | None,
    assistant_model: nn.Module | ForwardDecoder | None,
    num_assistant_tokens: int,
) -> PromptLookup | Assistant | None:
    """Return the guesser that the options choose for a decoder, or None.

    Raises:
        ValueError: guesses for several rows, from two sources, of less than one token, or from an assistant with
            another vocabulary or on another device.
    """
    lookup = prompt_lookup_num_tokens
    if lookup is None and assistant_model is None:
        return None
    option = "assistant_model" if lookup is None else "prompt_lookup_num_tokens"
    if rows > 1:
        raise ValueError(f"{option} needs a single row, but there are {rows}. Pass one prompt at a time.")
    if lookup is not None and assistant_model is not None:
        raise ValueError("prompt_lookup_num_tokens and assistant_model both make guesses. Pass one of them.")
    if lookup is not None:
        if lookup < 1:
            raise ValueError(f"prompt_lookup_num_tokens is {lookup}; it must be at least 1, or None for no guesses.")
        return PromptLookup(lookup)
    if num_assistant_tokens < 1:
        raise ValueError(f"num_assistant_tokens is {num_assistant_tokens}; it must be at least 1.")
    assert assistant_model is not None
    assistant = make_decoder(assistant_model)
    for name, assistant_value, value in (
        ("has a vocabulary of", assistant.config.vocab_size, decoder.config.vocab_size),
        ("is on", assistant.device, decoder.device),
    ):
        if assistant_value != value:
            raise ValueError(
                f"assistant_model {name} {assistant_value}, but the model {name} {value}. They must be the same."
            )
    return Assistant(assistant, num_assistant_tokens, columns)


def look_up(ids: torch.Tensor, max_tokens: int, longest: int = 3) -> torch.Tensor:
    """Guess up to `max_tokens` ids after one row of ids (1, T): those that followed its end the last time.

    The end is the longest of the last 3, 2 or 1 tokens that occurs earlier. If none does, the guess is empty (Saxena
    2023, "Prompt Lookup Decoding").
    """
    T = ids.shape[1]
    if max_tokens > 0:
        for n in range(min(longest, T - 1), 0, -1):
            before = ids[0].unfold(0, n, 1)[:-1]  # (T - n, n): all runs of n tokens except the last
            matches = (before == ids[0, -n:]).all(1).nonzero()
            if len(matches):
                start = int(matches[-1]) + n
                return ids[:, start : start + max_tokens]
    return ids[:, :0]


__all__ = ["Assistant", "PromptLookup", "look_up", "make_guesser"]
