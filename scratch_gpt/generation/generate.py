"""Generate continuations of prompts, complete or token by token, with a KV cache.

For each new token, in this order: the logits of the last position; temperature; top-k; top-p; softmax; one draw. At
temperature 0 the token with the largest logit is taken, as in `model.generate(do_sample=False)`.

When the context is full, the window slides: each further token is predicted from the last `max_position_embeddings`
tokens. With learned positions every token of the window then has a new position, so the cache is invalid and the
window is computed again for each token. This is correct but slow.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..tokenization.tokenizer import begin_of_text_id, decode, encode
from ..utils import watchdog
from .decoder import ForwardDecoder, make_decoder
from .speculative import make_guesser


def filter_logits(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """Return the logits (B, V), with -inf for tokens that must not be drawn.

    Args:
        temperature: divides the logits; values below 1 sharpen the distribution.
        top_k: keep the k largest (Fan et al. 2018).
        top_p: of those, keep the smallest set of tokens with a total probability of at least p (Holtzman et al. 2020,
            nucleus sampling).
    """
    logits = logits.float() / temperature
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(descending=True)
        p = ordered.softmax(-1)
        beyond = p.cumsum(-1) - p >= top_p  # the tokens before it reach p; the first is always kept
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits


def generate(
    model: nn.Module | ForwardDecoder,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    seed: int = 0,
    prompt_lookup_num_tokens: int | None = None,
    assistant_model: nn.Module | ForwardDecoder | None = None,
    num_assistant_tokens: int = 5,
) -> torch.Tensor:
    """Continue prompts (B, T), padded on the left; return token ids (B, T + new).

    A row that has drawn `eos_token_id` is filled with `pad_token_id` (by default EOS) until all rows are finished. The
    model's mode and the global random state do not change.

    Args:
        model: a model, or a decoder from `make_decoder`, which can be used many times, can be quantized and counts
            tokens.
        prompt_lookup_num_tokens: guess this number of tokens from earlier text of the row (`look_up`), score all in
            one step, and keep the guesses that are drawn anyway. For one row only. Each token is still drawn from its
            own distribution with the same random numbers, so the result is the same up to rounding.
        assistant_model: a model that guesses `num_assistant_tokens` at a time: a smaller one with the same
            vocabulary, or `make_decoder(model, "int8")`.

    Raises:
        ValueError: the prompt is empty; temperature, top_k or top_p is out of range; guesses for several rows, from
            two sources, or from an assistant with another vocabulary or on another device.
    """
    _check(input_ids, temperature, top_k, top_p, max_new_tokens)
    decoder = make_decoder(model)
    pad_token_id = eos_token_id if pad_token_id is None else pad_token_id
    tokens = _draw(
        decoder,
        input_ids,
        attention_mask,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        seed=seed,
        guesses=(prompt_lookup_num_tokens, assistant_model, num_assistant_tokens),
    )
    return torch.cat([input_ids, *(token[:, None] for token in tokens)], 1)


@torch.inference_mode()
def _draw(
    decoder: ForwardDecoder,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    eos_token_id: int | None,
    pad_token_id: int | None,
    seed: int,
    guesses: tuple[int | None, nn.Module | ForwardDecoder | None, int],
) -> Iterator[torch.Tensor]:
    # Yield the next token of each row, (B,), until all rows are finished. `guesses` are arguments of make_guesser.
    limit = decoder.config.max_position_embeddings
    generator = torch.Generator(ids.device).manual_seed(seed)
    choose = partial(_choose, temperature=temperature, top_k=top_k, top_p=top_p)
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    T = n = ids.shape[1]  # tokens of the prompt; tokens so far
    end, guessed = T + max_new_tokens, 0
    guesser = make_guesser(decoder, len(ids), end, *guesses)
    mask = torch.ones_like(ids) if mask is None else mask
    models = [decoder.model, *(guesser.models if guesser else ())]
    were_training = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        while n < end:
            columns = n + 1 + (guesser.max_tokens if guesser else 0)
            if ids.shape[1] < min(columns, end):  # space for the next tokens, doubled each time
                padding = min(2 * columns, end) - ids.shape[1]
                ids, mask = F.pad(ids, (0, padding)), F.pad(mask, (0, padding), value=1)
            if n > limit:
                guessed = 0
                logits = decoder.window(ids[:, n - limit : n], mask[:, n - limit : n])
            elif n == T:
                logits = decoder.start(ids[:, :n], mask[:, :n], min(limit, end))
            else:
                if guesser:
                    guess = guesser.guess(ids[:, :n], mask, min(end - 1 - n, limit - n), choose, generator.get_state())
                    guessed = guess.shape[1]
                    ids[:, n : n + guessed] = guess
                logits = decoder.step(ids[:, n - 1 : n + guessed], mask[:, : n + guessed])  # (B, 1 + guessed, V)
                decoder.guessed += guessed
            for k in range(logits.shape[1]):
                token = choose(logits[:, k], generator)
                decoder.drawn += len(token)
                if eos_token_id is not None:
                    decoder.drawn -= int(finished.sum())
                    token = torch.where(finished, cast(int, pad_token_id), token)
                    finished |= token == eos_token_id
                yield token
                if eos_token_id is not None and finished.all():
                    return
                is_guessed = k < guessed and token.item() == ids[0, n].item()
                ids[:, n] = token
                n += 1
                if not is_guessed:
                    break  # logits after a wrong guess belong to another text
                decoder.accepted += 1
    finally:
        for model, was_training in zip(models, were_training, strict=True):
            model.train(was_training)


def _choose(
    logits: torch.Tensor, generator: torch.Generator, temperature: float, top_k: int | None, top_p: float | None
) -> torch.Tensor:
    # Choose one token for each row: (B, V) -> (B,).
    if temperature == 0:
        return largest(logits)
    probabilities = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
    if not probabilities.isfinite().all():
        raise ValueError("The logits are not finite: the model has diverged, or temperature is too small.")
    return probabilities.multinomial(1, generator=generator)[:, 0]


def largest(logits: torch.Tensor) -> torch.Tensor:
    """Return the index (B,) of each row's largest logit (B, V), the first one of equals.

    On a CPU it uses NumPy's argmax, which takes at most half of the time of torch's.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    return torch.from_numpy(logits.float().numpy().argmax(-1))


class PaddedRows(TypedDict):
    """Rows of ids (B, T), padded on the left, with their mask."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def pad_left(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> PaddedRows:
    """Return {"input_ids", "attention_mask"}, each (B, T): the rows left-padded with token 0, which the mask hides.

    Example:
        >>> pad_left([[5, 6, 7], [8]])["input_ids"].tolist()
        [[5, 6, 7], [0, 0, 8]]
        >>> pad_left([[5, 6, 7], [8]])["attention_mask"].tolist()
        [[1, 1, 1], [0, 0, 1]]
    """
    T = max(map(len, rows))
    ids = torch.tensor([[0] * (T - len(row)) + [*row] for row in rows], device=device)
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def generate_text(
    model: nn.Module | ForwardDecoder, tokenizer: PreTrainedTokenizerBase, prompts: str | list[str], **options: Any
) -> str | list[str]:
    """Return the continuation of each prompt as text, up to EOS. `options` are those of `generate`.

    Special tokens written in a prompt are treated as plain text. An empty prompt starts a document, from EOS.
    """
    if isinstance(prompts, str):
        return generate_text(model, tokenizer, [prompts], **options)[0]
    if not prompts:
        return []
    rows = [encode(tokenizer, prompt) or [cast(int, begin_of_text_id(tokenizer))] for prompt in prompts]
    return [decode(tokenizer, row) for row in _continue(model, tokenizer, rows, **options)]


def generate_answers(
    model: nn.Module | ForwardDecoder,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int = 50,
    batch_size: int = 32,
    seed: int = 0,
    **options: Any,
) -> list[str]:
    """Return the continuation of each prompt of token ids as text, up to EOS.

    An answer also ends when the context is full: the window does not slide. Prompts of similar length share a batch.
    With temperature 0 an answer does not depend on the rest of its batch. Each batch draws with a separate seed,
    derived from `seed`. `options` are the other options of `generate`.
    """
    decoder = make_decoder(model)
    seeds = torch.Generator().manual_seed(seed)
    limit = decoder.config.max_position_embeddings
    lengths = [
        max(0, min(max_new_tokens, limit + 1 - len(prompt))) for prompt in prompts
    ]  # the last token needs no position
    order = sorted(range(len(prompts)), key=lambda k: -len(prompts[k]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        watchdog.beat()
        indices = order[start : start + batch_size]
        rows = _continue(
            decoder,
            tokenizer,
            [prompts[k] for k in indices],
            max_new_tokens=max(lengths[k] for k in indices),
            seed=int(torch.randint(2**62, (), generator=seeds)),
            **options,
        )
        for k, row in zip(indices, rows, strict=True):
            answers[k] = decode(tokenizer, row[: lengths[k]])
    return answers


def stream(
    model: nn.Module | ForwardDecoder,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    prompt_lookup_num_tokens: int | None = None,
    assistant_model: nn.Module | ForwardDecoder | None = None,
    num_assistant_tokens: int = 5,
) -> Iterator[str]:
    """Yield the continuation of a prompt's ids in pieces as they are generated, up to EOS.

    The joined pieces equal the result of `generate_text`. A character of several tokens is yielded when complete.
    """
    decoder = make_decoder(model)
    prompt = torch.tensor([ids or [begin_of_text_id(tokenizer)]], device=decoder.device)
    _check(prompt, temperature, top_k, top_p, max_new_tokens)
    eos = cast(int | None, tokenizer.eos_token_id)
    tokens = _draw(
        decoder,
        prompt,
        None,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        eos_token_id=eos,
        pad_token_id=eos,
        seed=seed,
        guesses=(prompt_lookup_num_tokens, assistant_model, num_assistant_tokens),
    )
    new_ids: list[int] = []
    length = 0  # characters that have been yielded
    for token in tokens:
        if token.item() == eos:
            break
        new_ids.append(int(token.item()))
        text = decode(tokenizer, new_ids).rstrip("\ufffd")  # without an incomplete last character
        if text[length:]:
            yield text[length:]
            length = len(text)
    if ending := decode(tokenizer, new_ids)[length:]:
        yield ending


def _continue(
    model: nn.Module | ForwardDecoder, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], **options: Any
) -> list[list[int]]:
    # Return the continuation of each row, up to EOS.
    decoder = make_decoder(model)
    batch = pad_left(rows, decoder.device)
    eos = options.setdefault("eos_token_id", tokenizer.eos_token_id)
    output = generate(decoder, **batch, **options)[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in output]


def _check(
    input_ids: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None, max_new_tokens: int
) -> None:
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids have shape {tuple(input_ids.shape)}; pass (rows, at least 1 token).")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or more.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1, or None for all tokens.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1, or None.")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 0.")


__all__ = ["PaddedRows", "filter_logits", "generate", "generate_answers", "generate_text", "pad_left", "stream"]
