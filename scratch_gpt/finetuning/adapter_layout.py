"""A LoRA adapter in our names <-> in stock GPT-2's, exactly: peft then loads it on the stock model, and we theirs.

GPT-2 has one c_attn where we have q, k and v. Three adapters of rank r below each other are one of rank 3r:

    A = [A_q; A_k; A_v] (3r, in)    B = blocks on the diagonal B_q, B_k, B_v (3D, 3r)    magnitude = [m_q; m_k; m_v]

Back, each of the three takes all of A and its own rows of B. (peft keeps A and B the same way round for Conv1D.)
"""

import re
from typing import Any

import torch


Tensors = dict[str, torch.Tensor]
NAMES = {"attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
QKV = ("q_proj", "k_proj", "v_proj")
JOINED = re.compile(r"(.*\.attn\.)q_proj(\..*)")
APART = re.compile(r"(.*\.attn\.)c_attn(\..*)")


def to_gpt2(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and fields of adapter_config.json of an adapter on our model -> the same adapter on stock GPT-2.

    All of q, k and v are adapted, or none.
    """
    theirs = {}
    for name, tensor in tensors.items():
        name = name.replace("transformer.layers.", "transformer.h.")
        for ours, stock in NAMES.items():
            name = name.replace(ours, stock)
        theirs[name] = tensor
    for name in list(theirs):
        if found := JOINED.fullmatch(name):
            parts = [theirs.pop(f"{found[1]}{part}{found[2]}") for part in QKV]
            joined = torch.block_diag(*parts) if ".lora_B" in name else torch.cat(parts)
            theirs[f"{found[1]}c_attn{found[2]}"] = joined
    targets = set(config["target_modules"])
    three = 3**0.5 if config["use_rslora"] else 3  # the scale stays what it is
    changes = {
        "target_modules": sorted({"c_attn"} | {NAMES[name] for name in NAMES if name.split(".")[1] in targets}),
        "fan_in_fan_out": True,
        "rank_pattern": {"c_attn": 3 * config["r"]},
        "alpha_pattern": {"c_attn": three * config["lora_alpha"]},
    }
    return theirs, changes


def from_gpt2(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The way back, for any LoRA adapter on stock GPT-2's blocks; an adapter on our model stays as it is."""
    if not any(".h." in name for name in tensors):
        return tensors, {}
    from peft.utils.other import get_pattern_key  # slow, and only who has an adapter needs it

    stock = {theirs: ours for ours, theirs in NAMES.items()}
    ours, modules = {}, {}
    for original, tensor in tensors.items():
        name = original.replace("transformer.h.", "transformer.layers.")
        for there, here in stock.items():
            name = name.replace(there, here)
        if found := APART.fullmatch(name):
            parts = [tensor] * 3 if ".lora_A" in name else tensor.chunk(3)
            new = {f"{found[1]}{part}{found[2]}": rows for part, rows in zip(QKV, parts, strict=True)}
        else:
            new = {name: tensor}
        ours |= new
        if ".lora_" in name:
            modules[_module(original)] = [*map(_module, new)]
    patterns: dict[str, dict[str, Any]] = {"rank_pattern": {}, "alpha_pattern": {}}
    for there, here in modules.items():  # each by name: a pattern may be any part of one
        for field, values in patterns.items():
            if (key := get_pattern_key(config[field], there)) in config[field]:
                values.update(dict.fromkeys(here, config[field][key]))
    adapted = {name.rsplit(".", 1)[-1] for here in modules.values() for name in here}
    return ours, {"target_modules": sorted(adapted), "fan_in_fan_out": False, **patterns}


def _module(name: str) -> str:
    # As the model calls it, of a tensor of its adapter.
    return name.split(".lora_")[0].removeprefix("base_model.model.")


__all__ = ["from_gpt2", "to_gpt2"]
