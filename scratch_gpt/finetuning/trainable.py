"""Choose and count the parameters that are trained."""

import re
from typing import Any

from torch import nn

from .quantization import QuantizedLinear


def freeze(model: nn.Module, tune: str) -> list[str]:
    """Leave trainable what `tune` names: full, last-block, last-N-blocks (both with final norm and head) or head.

    Returns:
        Messages for the user.

    Raises:
        ValueError: an unknown `tune`, more blocks than the model has, or the head of a model with a tied head.
    """
    match = re.fullmatch(r"full|head|last-(?:block|([1-9]\d*)-blocks)", tune)
    if match is None:
        raise ValueError(f"tune is {tune!r}; it must be full, last-block, last-N-blocks, head or lora.")
    model.requires_grad_(tune == "full")
    if tune == "full":
        return []
    tuned: Any = model  # has the attributes of our classes and stock GPT-2's
    trunk, name = tuned.base_model, _head_name(model)
    tied = name is None or model.get_parameter(f"{name}.weight") is tuned.get_input_embeddings().weight
    if tune == "head" and tied:
        raise ValueError("tune is head, but this model's head is its token embedding. Give last-block, full or lora.")
    if name is not None and not tied:
        model.get_submodule(name).requires_grad_(True)
    if tune == "head":
        return []
    blocks, norm = (trunk.layers, trunk.norm) if hasattr(trunk, "layers") else (trunk.h, trunk.ln_f)
    count = int(match[1] or 1)
    if count > len(blocks):
        raise ValueError(f"tune is {tune}, but the model has {len(blocks)} blocks. Give fewer, or full.")
    for part in (*blocks[-count:], norm):
        part.requires_grad_(True)
    return [f"{tune}: the head shares its weights with the token embedding, so it is not trained."] if tied else []


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of trained parameters and of all parameters; tied ones count once."""
    parameters = list(model.parameters())
    quantized = (layer for layer in model.modules() if isinstance(layer, QuantizedLinear))
    quantized_count = sum(layer.in_features * layer.out_features for layer in quantized)
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters) + quantized_count


def trainable_line(model: nn.Module) -> str:
    """Return a line such as `Training 2,666,528 of 127,107,872 parameters (2.10 %)`."""
    trained, total = count_parameters(model)
    return f"Training {trained:,} of {total:,} parameters ({trained / total:.2%})".replace("%", " %")


# --- Parts -------------------------------------------------------------------------------------------------------


def _head_name(model: nn.Module) -> str | None:
    return next((name for name in ("score", "lm_head") if hasattr(model, name)), None)


__all__ = ["count_parameters", "freeze", "trainable_line"]
