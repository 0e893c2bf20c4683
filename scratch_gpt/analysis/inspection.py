"""Inspect a model on one text: attention, next-token probabilities, the logit lens, nearest embeddings.

T tokens, L layers, H heads, D width, V vocabulary, C classes. inspection_page.py draws the results.
"""

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..conversion.load import load_model
from ..evaluation.classification import probabilities_of
from ..generation.generate import filter_logits
from ..modeling.configuration_scratch_gpt import ScratchGPTConfig
from ..modeling.modeling_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification
from ..tokenization.tokenizer import check_vocabulary, decode, load_tokenizer
from ..utils.loading import ADAPTER_CONFIG


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_REST = [byte for byte in range(256) if byte not in _PRINTABLE]
# Byte-level vocabularies write bytes as letters (Radford et al. 2019): printable ones as themselves, others from 256.
LETTER_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_REST)}


class Subject(NamedTuple):
    """A model to inspect."""

    model: ScratchGPTForCausalLM | ScratchGPTForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    kind: str  # base, chat or classifier


def open_subject(folder: str | Path) -> Subject:
    """Load the model of a folder, in our layout or stock GPT-2's, in eval mode and with attention weights.

    Raises:
        ValueError: the folder has no complete model and tokenizer, or it holds an adapter or a regression.
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).exists():
        raise ValueError(f"{folder} holds an adapter. Inspect its run's model/, in which it is merged into its base.")
    if not (folder / "config.json").exists():
        hint = f" Did you mean {folder / 'model'}?" if (folder / "model" / "config.json").exists() else ""
        raise ValueError(f"{folder} is not a model folder: it has no config.json.{hint}")
    try:
        architectures = ScratchGPTConfig.get_config_dict(str(folder))[0].get("architectures") or [""]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}/config.json cannot be read: {' '.join(str(error).split())[:200]}") from error
    is_classifier = architectures[0].endswith("ForSequenceClassification")
    model_class = ScratchGPTForSequenceClassification if is_classifier else ScratchGPTForCausalLM
    model = load_model(str(folder), None, model_class, needs_head=True)
    if is_classifier and model.config.num_labels == 1:
        raise ValueError(f"{folder} is a regression model: it has one output and no classes.")
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, model.config.vocab_size)
    model.set_attn_implementation("eager")  # other implementations return no weights
    kind = "classifier" if is_classifier else "chat" if tokenizer.chat_template else "base"
    return Subject(model.eval(), tokenizer, kind)


def spell(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    """Return a token's text; if it is a part of a character, its bytes, such as `<E2><82>`."""
    text, token = decode(tokenizer, [id]), tokenizer.convert_ids_to_tokens(id)
    if "\ufffd" in text and set(token) <= set(LETTER_BYTES):
        return "".join(f"<{LETTER_BYTES[letter]:02X}>" for letter in token)
    return text


class Look(NamedTuple):
    """The values of one forward pass over one text."""

    hidden: torch.Tensor  # (L + 1, T, D): the embeddings, then each layer's output; the last one after the norm
    attention: torch.Tensor  # (L, H, T, T): a row is the query token, a column the token it attends to


@torch.no_grad()
def look(model: PreTrainedModel, ids: list[int]) -> Look:
    """Run a model in eval mode on the ids of one text: at least one, at most the context length."""
    output = model.base_model(
        torch.tensor([ids], device=model.device), output_hidden_states=True, output_attentions=True, use_cache=False
    )
    return Look(torch.cat(output.hidden_states), torch.cat(output.attentions))


@torch.no_grad()
def next_probabilities(
    model: PreTrainedModel,
    hidden: torch.Tensor,  # (L + 1, T, D)
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> torch.Tensor:
    """Return the probabilities (V,) that `generate` draws the next token from; one-hot at temperature 0."""
    logits = cast(Any, model).lm_head(hidden[-1, -1:])  # (1, V)
    if temperature == 0:
        return nn.functional.one_hot(logits[0].argmax(), logits.shape[-1]).float()
    return filter_logits(logits, temperature, top_k, top_p)[0].softmax(-1)


@torch.no_grad()
def class_probabilities(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Return the probability of each class, (C,), at the last token; independent ones if a text has several labels."""
    return probabilities_of(_head(model)(hidden[-1, -1:]), _has_many(model))[0]


@torch.no_grad()
def logit_lens(model: PreTrainedModel, hidden: torch.Tensor, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most likely outputs after 0, 1, ... L layers: probabilities and indices, (L + 1, T, count) each.

    The final norm and the head applied to earlier layers (nostalgebraist 2020, "interpreting GPT: the logit lens").
    Indices are tokens of the vocabulary, or a classifier's classes; the most likely first.
    """
    body: Any = model.base_model
    last, top = len(hidden) - 1, []
    for n, states in enumerate(hidden):  # one layer at a time: (T, V) is large
        logits = _head(model)(states if n == last else body.norm(states))
        top.append(probabilities_of(logits, _has_many(model)).topk(min(count, logits.shape[-1])))
    return torch.stack([layer.values for layer in top]), torch.stack([layer.indices for layer in top])


@torch.no_grad()
def neighbors(model: PreTrainedModel, id: int, count: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens with the embeddings nearest to one token's: cosines and ids, (count,) each, nearest first."""
    embeddings: Any = model.get_input_embeddings()
    table = nn.functional.normalize(embeddings.weight.float(), dim=-1)  # (V, D)
    cosines = table @ table[id]
    cosines[id] = -torch.inf  # itself
    return cosines.topk(min(count, len(table) - 1))


def _head(model: Any) -> nn.Module:
    return model.score if hasattr(model, "score") else model.lm_head


def _has_many(model: PreTrainedModel) -> bool:
    return model.config.problem_type == "multi_label_classification"


__all__ = [
    "Look",
    "Subject",
    "class_probabilities",
    "logit_lens",
    "look",
    "neighbors",
    "next_probabilities",
    "open_subject",
    "spell",
]
