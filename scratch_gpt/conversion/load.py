"""Load GPT-2 shaped models from folders and the Hub, with adapters and LoRA checkpoints merged.

(Stock GPT-2 is converted by `from_pretrained` itself, with the table in modeling/gpt2_layout.py.)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model, PreTrainedConfig

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
from ..utils.loading import ADAPTER_CONFIG, explain, load_complete


OwnModelT = TypeVar("OwnModelT", bound=ScratchGPTPreTrainedModel)
STOCK_CLASSES = {
    ScratchGPTModel: GPT2Model,
    ScratchGPTForCausalLM: GPT2LMHeadModel,
    ScratchGPTForSequenceClassification: GPT2ForSequenceClassification,
}


def load_any_head(folder: Path) -> ScratchGPTPreTrainedModel:
    """Load a folder's model with its saved class; a LoRA run's checkpoint is merged.

    Raises:
        ValueError: the folder holds an adapter or a damaged file, or lacks weights.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise ValueError(f"{folder} holds an unmerged adapter, which GPT-2 cannot represent. Merge it into its base.")
    architectures = _read_config(str(folder), None).get("architectures") or []
    heads = {name: kind for kind, stock in STOCK_CLASSES.items() for name in (kind.__name__, stock.__name__)}
    kind = next((heads[name] for name in architectures if name in heads), ScratchGPTForCausalLM)
    if (lora := _lora_options(str(folder))) is not None:
        return _load_lora_checkpoint(str(folder), lora, kind, {})
    return load_complete(kind, folder)


def own_class(model: nn.Module) -> type[ScratchGPTPreTrainedModel] | None:
    """Return our class of a model, also if its code came with its folder; None for any other model."""
    if getattr(getattr(model, "config", None), "model_type", None) != ScratchGPTConfig.model_type:
        return None
    heads = {"lm_head": ScratchGPTForCausalLM, "score": ScratchGPTForSequenceClassification}
    kind = next((kind for head, kind in heads.items() if hasattr(model, head)), ScratchGPTModel)
    with torch.device("meta"):
        own_model = kind(ScratchGPTConfig.from_dict(cast(PreTrainedConfig, model.config).to_dict()))
    return kind if _shapes(model) == _shapes(own_model) else None


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def load_model(
    name: str,
    revision: str | None = None,
    model_class: type[OwnModelT] = ScratchGPTForCausalLM,
    needs_head: bool = False,
    **changes: Any,
) -> OwnModelT:
    """Load a GPT-2 shaped model from a folder or the Hub in fp32, ready for training; `changes` are config fields.

    An adapter is merged into its base, and so is the LoRA of a run's checkpoint. A classifier without a head gets a
    new one; with `needs_head` that is an error.

    Raises:
        ValueError: the model does not exist, or is of another kind.
    """

    def load(name: str, revision: str | None, **labels: Any) -> OwnModelT:
        if (lora := _lora_options(name)) is not None:
            return _load_lora_checkpoint(name, lora, model_class, changes)
        labels = labels if issubclass(model_class, ScratchGPTForSequenceClassification) else {}
        fresh = {"score.weight"} if labels or not needs_head else set()  # an adapter with labels has the head
        spare = set() if issubclass(model_class, ScratchGPTForCausalLM) else {"lm_head.weight"}
        config = _read_config(name, revision)
        heads = config.get("architectures") or []
        if not spare and any(str(head).endswith("ForSequenceClassification") for head in heads):
            raise ValueError(f"{name} is a classifier, and a language model is needed.")
        return load_complete(
            model_class,
            name,
            may_lack=fresh,
            may_hold=spare,
            revision=revision,
            dtype=torch.float32,
            **with_fused_gelu(config, {**labels, **changes}),
        )

    return load_adapted(name, load, revision)


def needs_merging(name: str, revision: str | None = None) -> bool:
    """Return whether a folder or Hub id holds LoRA separate from its base, so that only `load_model` loads it."""
    return _lora_options(name) is not None or find_adapter(name, revision) is not None


def _lora_options(name: str) -> dict[str, Any] | None:
    # Return the options of a checkpoint's run if it trained LoRA; None for any other folder.
    try:
        fields = read_state(Path(name))["record"]["config"]
        return fields if fields["tune"] == "lora" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load_lora_checkpoint(
    name: str, lora: dict[str, Any], model_class: type[OwnModelT], changes: dict[str, Any]
) -> OwnModelT:
    # Build the trained model with its LoRA, load the checkpoint's weights, and merge.
    from ..finetuning.lora import add_lora, merged_state

    values = _read_config(name, None)
    if (kind := ", ".join(values.get("architectures") or [])) != model_class.__name__:
        raise ValueError(f"{name} is a checkpoint of a {kind}, and a {model_class.__name__} is needed.")
    with one_error(f"{name} cannot be loaded", explain):
        config = ScratchGPTConfig.from_dict({**values, **changes})
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
    # Return the fields of a config.json of ours or of GPT-2.
    with one_error(f"{name} cannot be loaded", explain):
        config, _ = ScratchGPTConfig.get_config_dict(name, revision=revision)
        if config.get("model_type") != ScratchGPTConfig.model_type:
            raise ValueError(f"it is a {config.get('model_type')}, and only GPT-2 shaped models can be loaded here.")
    return config


def with_fused_gelu(config: Mapping[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `changes`, and replace GPT-2's gelu_new by the same function as one fused operation."""
    is_gelu_new = "gelu_new" in (config.get("activation_function"), config.get("hidden_act"))
    return {**changes, "hidden_act": "gelu_pytorch_tanh"} if is_gelu_new else changes


def fresh_head(model: ScratchGPTForSequenceClassification, names: Sequence[str], has_many: bool, seed: int) -> None:
    """Give a classifier a new head for the classes `names`, initialized from the seed, and set them in its config.

    With `has_many` the problem type is multi-label.
    """
    config = model.config
    config.id2label, config.label2id = dict(enumerate(names)), {name: id for id, name in enumerate(names)}
    config.problem_type = "multi_label_classification" if has_many else "single_label_classification"
    model.num_labels = len(names)
    model.score = nn.Linear(config.hidden_size, len(names), bias=False)
    nn.init.normal_(model.score.weight, std=config.initializer_range, generator=torch.Generator().manual_seed(seed))


__all__ = ["fresh_head", "load_any_head", "load_model", "needs_merging", "own_class", "with_fused_gelu"]
