"""Choose and count the parameters that are trained."""

import re

from torch import nn

from .quantization import QuantizedLinear


# --- What is trained ---------------------------------------------------------------------------------------------


def freeze(model: nn.Module, tune: str) -> list[str]:
    """Leave exactly what `tune` names trainable: full, last-block, last-N-blocks (with final norm and head) or head.

    Returns:
        What a user has to be told.

    Raises:
        ValueError: another word, more blocks than there are, or the head of a model whose head is its embedding.
    """
    found = re.fullmatch(r"full|head|last-(?:block|([1-9]\d*)-blocks)", tune)
    if found is None:
        raise ValueError(f"tune is {tune!r}; it is full, last-block, last-N-blocks, head or lora.")
    model.requires_grad_(tune == "full")
    if tune == "full":
        return []
    trunk, name = model.base_model, _head_name(model)
    tied = name is None or model.get_parameter(f"{name}.weight") is model.get_input_embeddings().weight
    if tune == "head" and tied:
        raise ValueError("tune is head, but this model's head is its token embedding. Give last-block, full or lora.")
    if not tied:
        model.get_submodule(name).requires_grad_(True)
    if tune == "head":
        return []
    blocks, norm = (trunk.layers, trunk.norm) if hasattr(trunk, "layers") else (trunk.h, trunk.ln_f)
    count = int(found[1] or 1)
    if count > len(blocks):
        raise ValueError(f"tune is {tune}, but the model has {len(blocks)} blocks. Give fewer, or full.")
    for part in (*blocks[-count:], norm):
        part.requires_grad_(True)
    return [f"{tune}: this model's head is its token embedding, which stays as it is."] if tied else []


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are; tied ones count once."""
    parameters = list(model.parameters())
    quantized = (layer for layer in model.modules() if isinstance(layer, QuantizedLinear))
    inside = sum(layer.in_features * layer.out_features for layer in quantized)
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters) + inside


def trainable_line(model: nn.Module) -> str:
    """`Trained: 2,666,528 of 127,107,872 parameters (2.10 %)`."""
    trained, total = count_parameters(model)
    return f"Trained: {trained:,} of {total:,} parameters ({trained / total:.2%})".replace("%", " %")


# --- Parts -------------------------------------------------------------------------------------------------------


def _head_name(model: nn.Module) -> str | None:
    return next((name for name in ("score", "lm_head") if hasattr(model, name)), None)


__all__ = ["count_parameters", "freeze", "trainable_line"]
