"""Add LoRA (peft) to a model, merge it, and save it as an adapter.

LoRA (Hu et al. 2021) freezes a matrix W and learns W + scale * B A, with A (r, in) and B (out, r). The layers are put
into the model itself, so that the training loop needs no change; a saved adapter is in peft's format.
"""

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.autograd.function import once_differentiable

from .adapter_files import ADAPTER_BASE, ADAPTER_WEIGHTS, describe_base, import_peft, without_root
from .adapter_layout import to_gpt2
from .quantization import QuantizedLinear, quantize_linears


# Modules that get LoRA, by our names and by stock GPT-2's (its c_attn is our q, k and v).
TARGETS = {
    "default": (("q_proj", "k_proj", "v_proj"), ("c_attn",)),
    "attention": (("q_proj", "k_proj", "v_proj", "o_proj"), ("c_attn", "attn.c_proj")),
    "all-linear": (("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"), ("c_attn", "c_fc", "c_proj")),
}
# peft's initializations that need neither data nor quantization. The last two change the base's weights.
INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")


def add_lora(
    model: nn.Module,
    *,
    base: str | None = None,
    revision: str | None = None,
    rank: int = 16,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: str = "default",
    init: str = "default",
    use_rslora: bool = False,
    use_dora: bool = False,
    quantize: str | None = None,
) -> None:
    """Add LoRA to a model of ours or stock GPT-2, in place; only LoRA and a classifier's head stay trainable.

    All weights of the head are trained, except with `all-linear`: then the head has LoRA like every other linear layer
    (as in Raschka 2024, appendix E: 2,666,528 parameters of GPT-2 at rank 16 and two classes).

    Args:
        base: folder or Hub id that the model was loaded from, at `revision`; saved adapters name both.
        alpha: B A is scaled by alpha / rank, with `use_rslora` by alpha / sqrt(rank) (Kalajdzievski 2023).
        targets: a key of TARGETS.
        init: one of INITS; with all but the last two, the model is unchanged before the first step.
        use_dora: learn each row's length separately from its direction (Liu et al. 2024).
        quantize: keep the blocks' matrices, which are not trained, in "nf4" or "int8" (quantization.py).

    Raises:
        ValueError: an argument has an unknown value.
        ImportError: peft is not installed.
    """
    if targets not in TARGETS:
        raise ValueError(f"lora_targets is {targets!r}; it must be one of {', '.join(TARGETS)}.")
    if init not in INITS:
        raise ValueError(f"lora_init is {init!r}; it must be one of {', '.join(INITS)}.")
    peft = import_peft()
    adapted: Any = model  # has the attributes of our classes and stock GPT-2's
    record = describe_base(model, base, revision)
    if record["layout"] == "gpt2" and init in ("pissa", "olora"):
        raise ValueError(f"lora_init {init} splits {base}'s c_attn, which our model has in three parts. Give another.")
    if quantize and (use_dora or init in ("pissa", "olora")):
        raise ValueError(f"{'use_dora' if use_dora else f'lora_init {init}'} needs the base's weights unquantized.")
    stock = hasattr(adapted.base_model, "h")
    if quantize and stock:
        raise ValueError("Stock GPT-2's Conv1D cannot be quantized here. Load the model as ours (load_model).")
    head = _classifier(model)
    names = [*TARGETS[targets][stock], *([head] if head and targets == "all-linear" else [])]
    if head:
        record["labels"] = list(adapted.config.id2label.values())
    config = peft.LoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        base_model_name_or_path=without_root(base),
        revision=revision,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        init_lora_weights=True if init == "default" else init,
        use_rslora=use_rslora,
        use_dora=use_dora,
        fan_in_fan_out=stock,
    )
    if not use_dora and not quantize:
        config._register_custom_module({nn.Linear: _lean_layer()})
    if quantize:
        quantize_linears(adapted.base_model.layers, quantize)
    peft.inject_adapter_in_model(config, model)
    if head and head not in names:
        model.get_submodule(head).requires_grad_(True)
    adapted.adapter_base = record


def has_lora(model: nn.Module) -> bool:
    """Return whether the model has LoRA layers."""
    return hasattr(model, "adapter_base")


# --- Out ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of the standalone model, with W + scale * B A for each W; the model is not changed."""
    changed = {name: layer for name, layer in model.named_modules() if _is_changed(layer)}
    state = {}
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{layer}.") for layer in changed):
            state[name] = tensor
        elif name.endswith("bias"):
            state[name.replace(".base_layer.", ".")] = tensor
    for name, layer in changed.items():
        if not name.endswith(".base_layer"):
            state[f"{name}.weight"] = _merged_weight(layer)
    return state


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Write the LoRA weights and a classifier's head in peft's format: a few MB, without the base.

    With a base in stock GPT-2's layout, the adapter is written in that layout.
    """
    peft = import_peft()
    adapted: Any = model  # has the attributes that `add_lora` and peft set
    config = copy.copy(adapted.peft_config["default"])
    tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    head = _classifier(model)
    if head:
        # peft saves a head as full weights without LoRA, so the head's own LoRA is merged into it.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{head}.")}
        tensors[f"{head}.weight"] = _merged_weight(model.get_submodule(head))
        config.modules_to_save = [head]
    config.target_modules = sorted(set(config.target_modules) - {head})
    config.inference_mode = True
    if adapted.adapter_base["layout"] == "gpt2":
        tensors, changes = to_gpt2(tensors, config.to_dict())
        vars(config).update(changes)
    folder.mkdir(parents=True, exist_ok=True)
    content = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(content, str(folder / ADAPTER_WEIGHTS), metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    (folder / ADAPTER_BASE).write_text(json.dumps(adapted.adapter_base, indent=2) + "\n", encoding="utf-8")


def _classifier(model: nn.Module) -> str:
    return "score" if hasattr(model, "score") else ""


def _lean_layer() -> type[nn.Module]:
    base_class: Any = import_peft().tuners.lora.Linear

    class LeanLinear(base_class):
        """peft's layer with its single adapter computed by `LoraLinear`; peft computes all other cases."""

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            drops = self.training and not isinstance(self.lora_dropout["default"], nn.Identity)
            is_plain = self.active_adapters == ["default"] and not (self.disable_adapters or self.merged or drops)
            if not is_plain or args or kwargs:
                return super().forward(x, *args, **kwargs)
            base, A, B = self.base_layer, self.lora_A["default"].weight, self.lora_B["default"].weight
            return LoraLinear.apply(x, base.weight, base.bias, A, B, self.scaling["default"])

    return LeanLinear


class LoraLinear(torch.autograd.Function):
    """Compute x W^T + b + scale (x A^T) B^T, where W and b are not trained (Hu et al. 2021).

    As one function it saves only x and x A^T for the backward pass: autocast would save a copy of each W, and of x for
    each layer that reads it. Letters: x (..., I), W (O, I), A (R, I), B (O, R).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        W: torch.Tensor,
        b: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        ctx.scale, ctx.dtype = scale, dtype
        with torch.autocast(device, enabled=False):
            rows = x.to(dtype).flatten(0, -2)
            down = rows @ A.to(dtype).T  # (..., R)
            y = F.linear(rows, W.to(dtype), None if b is None else b.to(dtype))
            y.addmm_(down, B.to(dtype).T, alpha=scale)
        ctx.save_for_backward(x, W, A, B, down)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B, down = ctx.saved_tensors
        g = gradient.to(ctx.dtype).flatten(0, -2)  # (..., O)
        g_down = (g @ B.to(ctx.dtype)).mul_(ctx.scale)
        g_A = g_down.T @ x.to(ctx.dtype).flatten(0, -2)
        g_B = (g.T @ down).mul_(ctx.scale)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = (g @ W.to(ctx.dtype)).addmm_(g_down, A.to(ctx.dtype)).view(x.shape).to(x.dtype)
        return g_x, None, None, g_A.to(A.dtype), g_B.to(B.dtype), None


def _is_changed(layer: nn.Module) -> bool:
    return hasattr(layer, "lora_A") or isinstance(layer, QuantizedLinear)


def _merged_weight(layer: nn.Module) -> torch.Tensor:
    if not hasattr(layer, "lora_A"):
        return cast(torch.Tensor, layer.weight)
    lora_layer: Any = layer  # peft's
    if isinstance(lora_layer.get_base_layer(), QuantizedLinear):
        return lora_layer.get_base_layer().weight + lora_layer.get_delta_weight("default")
    merged = copy.deepcopy(lora_layer)
    merged.merge()
    return merged.get_base_layer().weight.detach()


__all__ = ["INITS", "TARGETS", "add_lora", "has_lora", "merged_state", "save_adapter"]
