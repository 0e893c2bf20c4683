"""A text so far -> a guess of its next tokens, which the model then scores all in one step: speculative decoding.

A guess changes nothing but the speed. Each token is still drawn from the model's own distribution with the random
numbers of its own; a guess is kept where it is what was drawn anyway. Guessers differ in where theirs come from: what
the text has said before (PromptLookup), or a second model (Assistant).
"""

from collections.abc import Callable

import torch
from torch import nn

from .decoder import ForwardDecoder, make_decoder


Draw = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # logits (1, V) -> a token (1,)


class PromptLookup:
    """What followed the text's end the last time, up to `most` tokens."""

    models = ()

    def __init__(self, most: int):
        self.most = most

    def guess(self, ids: torch.Tensor, mask: torch.Tensor, most: int, draw: Draw, state: torch.Tensor) -> torch.Tensor:
        return look_up(ids, min(most, self.most))


class Assistant:
    """A second model's own continuation, up to `most` tokens: a smaller model of the same vocabulary, or one in int8.

    It draws with the random numbers that the model will draw with, so that two models of like mind draw the same
    token not only greedily. Leviathan et al. 2022 (arXiv:2211.17192) accept by a draw of its own, and so change which
    tokens a seed gives; this keeps them.

    Args:
        columns: tokens that the text will have at most.
    """

    def __init__(self, decoder: ForwardDecoder, most: int, columns: int):
        self.decoder, self.most, self.models = decoder, most, (decoder.model,)
        self.columns = min(columns, decoder.model.config.max_position_embeddings)
        self.kept = 0  # tokens whose keys and values it has, guesses included

    def guess(self, ids: torch.Tensor, mask: torch.Tensor, most: int, draw: Draw, state: torch.Tensor) -> torch.Tensor:
        """The text (1, n), the mask of it and of what comes, the generator's state -> a guess (1, up to `most`)."""
        n = ids.shape[1]
        most = min(most, self.most, self.columns - n)
        if most < 1:
            return ids[:, :0]
        generator = torch.Generator(ids.device).set_state(state)
        kept = min(self.kept, n - 1)  # all before the last token was either kept as guessed or is gone
        new = ids[:, kept:]
        for m in range(n, n + most):
            seen = mask[:, :m]
            logits = self.decoder.step(new, seen) if kept else self.decoder.start(new, seen, self.columns)
            new = draw(logits[:, -1], generator)[:, None]
            ids, kept = torch.cat([ids, new], 1), m
        self.kept = kept
        return ids[:, n:]


def make_guesser(
    decoder: ForwardDecoder,
    rows: int,
    columns: int,
    prompt_lookup_num_tokens: int | None,
    assistant_model: nn.Module | ForwardDecoder | None,
    num_assistant_tokens: int,
) -> PromptLookup | Assistant | None:
    """What is asked to guess for a decoder, or None.

    Raises:
        ValueError: guesses for several rows, from two sources, of no token, or from an assistant of another vocabulary
            or on another device.
    """
    lookup, assistant = prompt_lookup_num_tokens, assistant_model
    if lookup is None and assistant is None:
        return None
    asked = "assistant_model" if lookup is None else "prompt_lookup_num_tokens"
    if rows > 1:
        raise ValueError(f"{asked} guesses for one row, and here are {rows}: give one prompt at a time.")
    if lookup is not None and assistant is not None:
        raise ValueError("prompt_lookup_num_tokens and assistant_model both guess: give one of them.")
    if lookup is not None:
        if lookup < 1:
            raise ValueError(f"prompt_lookup_num_tokens is {lookup}; it is at least 1, or None for no guesses.")
        return PromptLookup(lookup)
    if num_assistant_tokens < 1:
        raise ValueError(f"num_assistant_tokens is {num_assistant_tokens}; it is at least 1.")
    assistant = make_decoder(assistant)
    for name, its, ours in (
        ("has a vocabulary of", assistant.model.config.vocab_size, decoder.model.config.vocab_size),
        ("is on", assistant.device, decoder.device),
    ):
        if its != ours:
            raise ValueError(f"assistant_model {name} {its}, and the model {name} {ours}: they have to be the same.")
    return Assistant(assistant, num_assistant_tokens, columns)


def look_up(ids: torch.Tensor, most: int, longest: int = 3) -> torch.Tensor:
    """One row of ids (1, T) -> a guess of what follows, (1, up to `most`): what followed its end the last time.

    The end is the last 3 tokens, or 2, or 1: the most that have stood there before. Nothing where none has
    (Saxena 2023, "Prompt Lookup Decoding").
    """
    T = ids.shape[1]
    if most > 0:
        for n in range(min(longest, T - 1), 0, -1):
            before = ids[0].unfold(0, n, 1)[:-1]  # (T - n, n): every stretch but the last
            found = (before == ids[0, -n:]).all(1).nonzero()
            if len(found):
                start = int(found[-1]) + n
                return ids[:, start : start + most]
    return ids[:, :0]


__all__ = ["Assistant", "PromptLookup", "look_up", "make_guesser"]
