"""Other projects' GPT-2 shaped checkpoints <-> ours: stock GPT-2 folders out, nanoGPT's and the book's files in.

(Stock GPT-2 comes in through `from_pretrained` itself, by the table in modeling/gpt2_layout.py.)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

from ..finetuning.adapter_files import find_adapter, load_adapted
from ..modeling.configuration_scratch_gpt import ScratchGPTConfig
from ..modeling.modeling_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
)
from ..train.checkpoints import WEIGHTS, check_shapes, find_damage, read_state
from ..utils.foreign import one_error
from ..utils.loading import explain, load_complete


ModelT = TypeVar("ModelT", bound=ScratchGPTPreTrainedModel)
STOCK_CLASSES = {
    ScratchGPTModel: GPT2Model,
    ScratchGPTForCausalLM: GPT2LMHeadModel,
    ScratchGPTForSequenceClassification: GPT2ForSequenceClassification,
}


def load_any_head(folder: Path) -> ScratchGPTPreTrainedModel:
    """The model of a folder as the class that it was saved as; of a LoRA run's checkpoint, what it learned is merged.

    Raises:
        ValueError: the folder holds an adapter, a damaged file, or not all weights.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an unmerged adapter, which GPT-2 cannot express. Merge it into its base.")
    architectures = _read_config(str(folder), None).get("architectures") or []
    heads = {name: ours for ours, stock in STOCK_CLASSES.items() for name in (ours.__name__, stock.__name__)}
    kind = next((heads[name] for name in architectures if name in heads), ScratchGPTForCausalLM)
    if _lora_of(str(folder)) is not None:
        return _load_lora_checkpoint(str(folder), kind, {})
    return load_complete(kind, folder)


def own_class(model: nn.Module) -> type[ScratchGPTPreTrainedModel] | None:
    """Return the class of ours that a model is, also if its code came with its folder; None for any other model."""
    if getattr(getattr(model, "config", None), "model_type", None) != ScratchGPTConfig.model_type:
        return None
    heads = {"lm_head": ScratchGPTForCausalLM, "score": ScratchGPTForSequenceClassification}
    kind = next((kind for head, kind in heads.items() if hasattr(model, head)), ScratchGPTModel)
    with torch.device("meta"):
        ours = kind(ScratchGPTConfig.from_dict(model.config.to_dict()))
    shapes = ({name: tensor.shape for name, tensor in each.state_dict().items()} for each in (model, ours))
    return kind if next(shapes) == next(shapes) else None


def load_model(
    name: str,
    revision: str | None = None,
    model_class: type[ModelT] = ScratchGPTForCausalLM,
    needs_head: bool = False,
    **changes: Any,
) -> ModelT:
    """A GPT-2 shaped model of a folder or the Hub in fp32, ready to be trained; `changes` are config fields.

    An adapter is merged into its base, and so is what a checkpoint of a LoRA run has learned until there. A
    classifier's head is new where there is none yet, with `needs_head` an error.

    Raises:
        ValueError: there is none, or it is something else.
    """

    def load(name: str, revision: str | None, **labels: Any) -> ModelT:
        if _lora_of(name) is not None:
            return _load_lora_checkpoint(name, model_class, changes)
        known = labels if issubclass(model_class, ScratchGPTForSequenceClassification) else {}
        fresh = {"score.weight"} if known or not needs_head else set()  # labels are an adapter's that has the head
        spare = set() if issubclass(model_class, ScratchGPTForCausalLM) else {"lm_head.weight"}
        found = _read_config(name, revision)
        heads = found.get("architectures") or []
        if not spare and any(str(head).endswith("ForSequenceClassification") for head in heads):
            raise ValueError(f"{name} is a classifier, and a language model is needed.")
        fields = with_fused_gelu(found, {**known, **changes})
        where = {"revision": revision, "dtype": torch.float32}
        return load_complete(model_class, name, may_lack=fresh, may_hold=spare, **where, **fields)

    return load_adapted(name, load, revision)


def needs_merging(name: str, revision: str | None = None) -> bool:
    """Whether a folder or Hub id holds LoRA apart from its base, so that only `load_model` loads it."""
    return _lora_of(name) is not None or find_adapter(name, revision) is not None


def _lora_of(name: str) -> dict[str, Any] | None:
    # The fields of the run with LoRA that a checkpoint is of; None for any other folder.
    try:
        fields = read_state(Path(name))["record"]["config"]
        return fields if fields["tune"] == "lora" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load_lora_checkpoint(name: str, model_class: type[ModelT], changes: dict[str, Any]) -> ModelT:
    # The model in which it was trained, made anew, with the checkpoint's weights; then merged.
    from ..finetuning.lora import add_lora, merged_state

    found, lora = _read_config(name, None), _lora_of(name)
    if (kind := ", ".join(found.get("architectures") or [])) != model_class.__name__:
        raise ValueError(f"{name} is a checkpoint of a {kind}, and a {model_class.__name__} is needed.")
    with one_error(f"{name} cannot be loaded", explain):
        config = ScratchGPTConfig.from_dict({**found, **changes})
        if problem := find_damage(Path(name)):
            raise ValueError(f"{problem}.")
        tuned = model_class(config)
        add_lora(
            tuned,
            rank=lora["lora_rank"],
            alpha=lora["lora_alpha"],
            targets=lora["lora_targets"],
            use_rslora=lora["use_rslora"],
            use_dora=lora["use_dora"],
            quantize=None if lora["quantize_base"] == "no" else lora["quantize_base"],
        )
        check_shapes(Path(name), tuned)
        tuned.load_state_dict(load_file(str(Path(name) / WEIGHTS)), strict=False)  # tied tensors have one name
    model = model_class(config)
    model.load_state_dict(merged_state(tuned))
    return model.eval()


def _read_config(name: str, revision: str | None) -> dict[str, Any]:
    # The content of a config.json of ours or of GPT-2.
    with one_error(f"{name} cannot be loaded", explain):
        found, _ = ScratchGPTConfig.get_config_dict(name, revision=revision)
        if found.get("model_type") != ScratchGPTConfig.model_type:
            raise ValueError(f"it is a {found.get('model_type')}, and only GPT-2 shaped models are loaded here.")
    return found


def with_fused_gelu(found: Mapping[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """What training changes in a config that was found: GPT-2's gelu_new is the same function as one operation."""
    is_gelu_new = "gelu_new" in (found.get("activation_function"), found.get("hidden_act"))
    return {**changes, "hidden_act": "gelu_pytorch_tanh"} if is_gelu_new else changes


def fresh_head(model: ScratchGPTForSequenceClassification, names: Sequence[str], has_many: bool, seed: int) -> None:
    """Give a classifier a new head for the classes `names`, drawn by the seed, and their names to its config.

    With `has_many` each class is a question of its own.
    """
    config = model.config
    config.id2label, config.label2id = dict(enumerate(names)), {name: id for id, name in enumerate(names)}
    config.problem_type = "multi_label_classification" if has_many else "single_label_classification"
    model.num_labels = len(names)
    model.score = nn.Linear(config.hidden_size, len(names), bias=False)
    nn.init.normal_(model.score.weight, std=config.initializer_range, generator=torch.Generator().manual_seed(seed))


__all__ = ["fresh_head", "load_any_head", "load_model", "needs_merging", "own_class", "with_fused_gelu"]
