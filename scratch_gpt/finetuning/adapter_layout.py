"""Convert LoRA adapters between our names and stock GPT-2's, exactly, so that peft loads ours on the stock model.

GPT-2 has one c_attn for our q, k and v. Three adapters of rank r below each other are one adapter of rank 3r:

    A = [A_q; A_k; A_v] (3r, in)    B = blocks on the diagonal B_q, B_k, B_v (3D, 3r)    magnitude = [m_q; m_k; m_v]

Converted back, each of the three takes all of A and its own rows of B. (peft stores A and B of Conv1D like Linear's.)
"""

import re
from typing import Any

import torch


Tensors = dict[str, torch.Tensor]
NAMES = {"attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
QKV = ("q_proj", "k_proj", "v_proj")
Q_PROJ = re.compile(r"(.*\.attn\.)q_proj(\..*)")
C_ATTN = re.compile(r"(.*\.attn\.)c_attn(\..*)")


def to_gpt2(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Convert the tensors and adapter_config.json fields of an adapter on our model to one on stock GPT-2.

    All of q, k and v must be adapted, or none.
    """
    converted = {}
    for name, tensor in tensors.items():
        name = name.replace("transformer.layers.", "transformer.h.")
        for module, gpt2_module in NAMES.items():
            name = name.replace(module, gpt2_module)
        converted[name] = tensor
    for name in list(converted):
        if match := Q_PROJ.fullmatch(name):
            parts = [converted.pop(f"{match[1]}{part}{match[2]}") for part in QKV]
            joined = torch.block_diag(*parts) if ".lora_B" in name else torch.cat(parts)
            converted[f"{match[1]}c_attn{match[2]}"] = joined
    targets = set(config["target_modules"])
    factor = 3**0.5 if config["use_rslora"] else 3  # keeps the scale, since the rank is three times as large
    changes = {
        "target_modules": sorted({"c_attn"} | {NAMES[name] for name in NAMES if name.split(".")[1] in targets}),
        "fan_in_fan_out": True,
        "rank_pattern": {"c_attn": 3 * config["r"]},
        "alpha_pattern": {"c_attn": factor * config["lora_alpha"]},
    }
    return converted, changes


def from_gpt2(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Convert any LoRA adapter on stock GPT-2's blocks to one on our model; an adapter on our model stays as it is."""
    if not any(".h." in name for name in tensors):
        return tensors, {}
    from peft.utils.other import get_pattern_key  # slow to import

    own_names = {gpt2_module: module for module, gpt2_module in NAMES.items()}
    converted: Tensors = {}
    modules: dict[str, list[str]] = {}  # GPT-2's module: ours
    for original, tensor in tensors.items():
        name = original.replace("transformer.h.", "transformer.layers.")
        for gpt2_module, module in own_names.items():
            name = name.replace(gpt2_module, module)
        if match := C_ATTN.fullmatch(name):
            parts = [tensor] * 3 if ".lora_A" in name else tensor.chunk(3)
            new = {f"{match[1]}{part}{match[2]}": rows for part, rows in zip(QKV, parts, strict=True)}
        else:
            new = {name: tensor}
        converted |= new
        if ".lora_" in name:
            modules[_module(original)] = [*map(_module, new)]
    patterns: dict[str, dict[str, Any]] = {"rank_pattern": {}, "alpha_pattern": {}}
    for gpt2_module, names in modules.items():  # every module by its full name: a pattern may be any part of it
        for field, values in patterns.items():
            if (key := get_pattern_key(config[field], gpt2_module)) in config[field]:
                values.update(dict.fromkeys(names, config[field][key]))
    adapted = {name.rsplit(".", 1)[-1] for names in modules.values() for name in names}
    return converted, {"target_modules": sorted(adapted), "fan_in_fan_out": False, **patterns}


def _module(name: str) -> str:
    # Return the module's name in the model from the name of an adapter's tensor.
    return name.split(".lora_")[0].removeprefix("base_model.model.")


__all__ = ["from_gpt2", "to_gpt2"]
