"""Read a staged folder back as its users will load it, and compare its outputs with those of the run's model.

A language model is compared by greedy ids and their logits, any other model by its outputs. Letters: V vocabulary,
C classes.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..finetuning.adapter_files import ADAPTER_BASE, import_peft
from ..modeling.modeling_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTPreTrainedModel,
)
from ..utils.loading import load_complete


SENTENCE = "The cat sat on the mat because it was tired."
READBACK_TOKENS = 32  # greedy ids
PROMPT = 16  # the number of the sentence's ids used as a prompt, at most


class Outputs(NamedTuple):
    """Outputs of a model for one sentence."""

    sentence: list[int]  # its ids
    prompt: list[int]  # its first ids
    ids: list[int]  # greedy ids after the prompt; empty unless it is a language model
    scores: torch.Tensor  # (len(ids), V) logits of each greedy id; a classifier's logits (1, C)
    dtype: torch.dtype

    @property
    def tolerance(self) -> float:
        """The largest rounding difference: logits that are closer than this are a tie."""
        return max(8 * torch.finfo(self.dtype).eps, 4e-5) * max(self.scores.abs().max().item(), 0.1)


def sentence_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of SENTENCE, or id 0 if the tokenizer has none for it."""
    return cast(list[int], tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]) or [0]


def outputs_of(model: ScratchGPTPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Outputs:
    """Return the outputs that the published files of this model must reproduce."""
    sentence, context = sentence_ids(tokenizer), model.config.max_position_embeddings
    count = min(READBACK_TOKENS, context - 1) if isinstance(model, ScratchGPTForCausalLM) else 0
    prompt = sentence[: min(PROMPT, context - count)]
    ids, scores = _greedy(model, prompt, count) if count else ([], _forward(model, prompt, []))
    return Outputs(sentence, prompt, ids, scores, model.dtype)


def read_model(folder: Path, model_class: type[ScratchGPTPreTrainedModel]) -> PreTrainedModel:
    """Load a staged folder: our layout with our class, the stock layout with transformers' class.

    Raises:
        ValueError: it cannot be loaded, or its tensors are not exactly the model's.
    """
    try:
        return load_complete(_auto_class(model_class), folder)
    except ValueError as error:
        raise ValueError(f"Nothing was published: the staged folder {error}") from error


def read_adapter(
    folder: Path, base: str, revision: str | None, model_class: type[ScratchGPTPreTrainedModel], dtype: torch.dtype
) -> torch.nn.Module | None:
    """Load a staged adapter on its base with peft; None if the base is not on this machine.

    Raises:
        ValueError: the two cannot be loaded together.
    """
    record = (
        json.loads((folder / ADAPTER_BASE).read_text(encoding="utf-8")) if (folder / ADAPTER_BASE).exists() else {}
    )
    labels = dict(enumerate(record.get("labels") or []))
    fields = {"id2label": labels, "label2id": {label: n for n, label in labels.items()}} if labels else {}
    try:
        model = _auto_class(model_class).from_pretrained(
            base,
            trust_remote_code=False,
            use_safetensors=True,
            revision=revision,
            local_files_only=True,
            dtype=dtype,
            **fields,
        )
    except OSError as error:
        if not Path(base).is_dir():
            return None
        raise ValueError(f"Nothing was published: the base {base} cannot be loaded: {_one_line(error)}") from error
    try:
        return import_peft().PeftModel.from_pretrained(model, str(folder)).eval()
    except Exception as error:  # each library raises its own types
        raise ValueError(f"Nothing was published: the adapter does not fit {base}: {_one_line(error)}") from error


def check_outputs(expected: Outputs, model: torch.nn.Module, folder: Path) -> str:
    """Compare a model that was read back with the run's model, and return a line that reports ties.

    Raises:
        ValueError: they differ.
    """
    name = type(cast(Any, model).get_base_model() if hasattr(model, "peft_config") else model).__name__
    try:
        sentence = sentence_ids(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False))
    except Exception as error:  # each library raises its own types
        raise ValueError(f"Nothing was published: its tokenizer cannot be loaded: {_one_line(error)}") from error
    if sentence != expected.sentence:
        _refuse(name, f"its tokenizer turns {SENTENCE!r} into {sentence[:8]}, not {expected.sentence[:8]}")
    scores = _forward(model, expected.prompt, expected.ids)
    gap = (scores - expected.scores).abs().max().item() if scores.shape == expected.scores.shape else float("inf")
    if not gap <= expected.tolerance:
        _refuse(name, f"its logits differ by up to {gap:.2g}")
    if not expected.ids:
        return f"Checked: loaded as {name}, the staged folder gives the outputs of the run's model."
    ties = []
    for n, (expected_id, id) in enumerate(zip(expected.ids, scores.argmax(-1).tolist(), strict=True)):
        if not (expected.scores[n, expected_id] - expected.scores[n, id]).abs() <= expected.tolerance:
            _refuse(name, f"greedy id {n + 1} of {len(expected.ids)} is {id}, not {expected_id}")
        if expected_id != id:
            ties.append(f"id {n + 1} is {expected_id} or {id}")
    exceptions = (
        f", except for ties in {str(expected.dtype).removeprefix('torch.')}: {'; '.join(ties)}" if ties else ""
    )
    return f"Checked: loaded as {name}, the staged folder gives the run's {len(expected.ids)} greedy ids{exceptions}."


def _refuse(name: str, difference: str) -> None:
    raise ValueError(
        f"Nothing was published: loaded as {name}, the staged folder differs from the run's model: {difference}. "
        "Publish again, or choose another layout."
    )


@torch.no_grad()
def _greedy(model: ScratchGPTPreTrainedModel, prompt: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    # Generate with the cache, and always `count` ids, regardless of the folder's generation config.
    generator: Any = model  # a language model
    config, generator.generation_config = generator.generation_config, GenerationConfig()
    try:
        output = generator.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        generator.generation_config = config
    return output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits).float()


@torch.no_grad()
def _forward(model: torch.nn.Module, prompt: list[int], ids: list[int]) -> torch.Tensor:
    # Run one pass over prompt and greedy ids. At each position, the best logit must be the next greedy id.
    output = model(input_ids=torch.tensor([prompt + ids[:-1]]), use_cache=False, return_dict=True)[0].float()
    return output[0, len(prompt) - 1 :] if ids else output


def _auto_class(model_class: type[ScratchGPTPreTrainedModel]) -> Any:
    if issubclass(model_class, ScratchGPTForCausalLM):
        return AutoModelForCausalLM
    is_classifier = issubclass(model_class, ScratchGPTForSequenceClassification)
    return AutoModelForSequenceClassification if is_classifier else AutoModel


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


__all__ = ["SENTENCE", "Outputs", "check_outputs", "outputs_of", "read_adapter", "read_model", "sentence_ids"]
