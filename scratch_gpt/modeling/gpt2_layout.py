"""Convert tensor names and layouts between GPT-2 and ours, by one table that transformers' loader applies both ways.

    GPT-2                      ours
    wte.weight                 embed_tokens.weight
    wpe.weight                 embed_positions.weight
    h.N                        layers.N
    attn.c_attn (D, 3D)        attn.q_proj, attn.k_proj, attn.v_proj, each (D, D) transposed
    attn.c_proj (in, out)      attn.o_proj (out, in)
    mlp.c_fc, mlp.c_proj       mlp.up_proj, mlp.down_proj, transposed
    ln_f                       norm

GPT-2 keeps its matrices as Conv1D, (in, out); nn.Linear keeps (out, in). transformers' loader cuts a tensor into
shards before it converts it, and some quantizers take only the first of several converted tensors. Loads that shard
or quantize therefore stop at this layout, and `from_pretrained` converts the complete model first.
This file travels inside every checkpoint.
"""

from contextvars import ContextVar
from typing import Any

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, Transpose, WeightConverter, WeightRenaming


class LayoutNotConverted(BaseException):
    """Raised when a load that shards or quantizes reaches GPT-2's layout.

    It is not an Exception, because the loader catches those, continues, and lists them in its report.
    """


# Whether the load in progress shards or quantizes. `from_pretrained` sets it.
shards_or_quantizes: ContextVar[bool] = ContextVar("shards_or_quantizes", default=False)


# Every parameter owns contiguous memory after loading: DDP, fused optimizers, safetensors and offloading rely on it.
# transformers' Transpose copies. Its Chunk copies in some versions only, and would copy again what Transpose copied.


class _TransposedView(Transpose):
    """Transpose without a copy, because `_OwnedChunk` copies each part afterwards."""

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        target = self.get_target_pattern(input_dict, source_patterns, target_patterns)
        tensors = next(iter(input_dict.values()))
        return {target: (tensors[0] if isinstance(tensors, list) else tensors).transpose(self.dim0, self.dim1)}


class _OwnedChunk(Chunk):
    """Chunk into equal parts, each in its own contiguous memory.

    Raises:
        LayoutNotConverted: the load shards or quantizes, or the stored model is quantized.
    """

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, model=None, **kwargs):
        if shards_or_quantizes.get() or getattr(model, "is_quantized", False):
            raise LayoutNotConverted("Tensors in GPT-2's layout cannot be sharded or quantized while they are loaded.")
        tensors = next(iter(input_dict.values()))
        parts = (tensors[0] if isinstance(tensors, list) else tensors).chunk(len(target_patterns), dim=self.dim)
        parts = (part.clone(memory_format=torch.contiguous_format) for part in parts)
        return dict(zip(target_patterns, parts, strict=True))


def _renaming(gpt2_name: str, name: str) -> WeightRenaming:
    # Anchored on both sides, so that `norm.` does not match inside another module's name in the reverse direction.
    return WeightRenaming(rf"(^|\.){gpt2_name}\.", rf"\1{name}\.")


def _projection(gpt2_name: str, name: str) -> list[WeightConverter | WeightRenaming]:
    return [
        WeightConverter(rf"\.{gpt2_name}\.weight", rf"\.{name}\.weight", [Transpose(0, 1)]),
        WeightRenaming(rf"\.{gpt2_name}\.bias", rf"\.{name}\.bias"),
    ]


_QKV = [f".attn.{name}_proj." for name in "qkv"]

GPT2_LAYOUT = [
    _renaming("wte", "embed_tokens"),
    _renaming("wpe", "embed_positions"),
    _renaming("h", "layers"),
    _renaming("ln_f", "norm"),
    WeightConverter(
        r"\.attn\.c_attn\.weight", [name + "weight" for name in _QKV], [_TransposedView(0, 1), _OwnedChunk(0)]
    ),
    WeightConverter(r"\.attn\.c_attn\.bias", [name + "bias" for name in _QKV], [_OwnedChunk(0)]),
    *_projection(r"attn\.c_proj", r"attn\.o_proj"),
    *_projection(r"mlp\.c_fc", r"mlp\.up_proj"),
    *_projection(r"mlp\.c_proj", r"mlp\.down_proj"),
]

# Causal-mask buffers in old GPT-2 checkpoints. Our model computes the mask in forward.
GPT2_BUFFERS = [r"attn\.(masked_)?bias$"]


def register_gpt2_layout(model_type: str) -> None:
    """Let `from_pretrained` of `model_type` read GPT-2 checkpoints. Calling it twice is safe (remote code does)."""
    register_checkpoint_conversion_mapping(model_type, GPT2_LAYOUT, overwrite=True)


# --- Loads that shard or quantize --------------------------------------------------------------------------------

# Arguments of `from_pretrained`: those that shard or quantize, and those that only concern the loaded module.
SHARDING_OR_QUANTIZING = ("quantization_config", "distributed_config", "device_mesh", "tp_plan", "tp_size")
PLACEMENT = ("device_map", "max_memory", "offload_folder", "offload_buffers", "dtype", "torch_dtype")
KERNELS = ("use_kernels", "kernel_config", "allow_all_kernels")


class _Source(torch.Tensor):
    """A tensor whose slices are copies, like those of a file, so that a shard does not keep all of it in memory."""

    def __getitem__(self, index):
        return self.as_subclass(torch.Tensor)[index].clone(memory_format=torch.contiguous_format)


def load_any_layout(load: Any, name: Any, *model_args: Any, **kwargs: Any) -> Any:
    """Call transformers' `from_pretrained` of a class; convert GPT-2's files first if it shards or quantizes them.

    Such files are first read completely on the CPU, in the stored type or `dtype`. The tensors of that model are then
    sharded or quantized.

    Args:
        load: transformers' `from_pretrained`, bound to the class; `name`, `model_args` and `kwargs` are its arguments.

    Raises:
        ValueError: the files hold quantized weights in GPT-2's layout; or they are an adapter for a base model in that
            layout, and the load shards or quantizes.
    """
    arguments = [argument for argument in SHARDING_OR_QUANTIZING if kwargs.get(argument) is not None]
    register_gpt2_layout(
        load.__self__.config_class.model_type
    )  # another copy of this file may have registered its own classes
    token = shards_or_quantizes.set(bool(arguments))
    try:
        return load(name, *model_args, **kwargs)
    except LayoutNotConverted:
        if not arguments:
            raise ValueError(
                f"{name} holds GPT-2 weights that are already quantized. {load.__self__.__name__} reads GPT-2's "
                "layout only unquantized: load the original weights, with quantization_config if you like."
            ) from None
    finally:
        shards_or_quantizes.reset(token)
    wants_info = kwargs.pop("output_loading_info", False)
    plain = {key: value for key, value in kwargs.items() if key not in (*arguments, *KERNELS, "device_map")}
    source, info = load_any_layout(load, name, *model_args, output_loading_info=True, **plain)
    if getattr(source, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{name} is an adapter for a base model in GPT-2's layout, which cannot be loaded with {arguments[0]} in "
            "one call. Load the base model with it, then call its load_adapter."
        )
    model = load(
        None,
        *model_args,
        config=source.config,
        state_dict={key: parameter.data.as_subclass(_Source) for key, parameter in source.named_parameters()},
        generation_config=getattr(source, "generation_config", None),
        **{key: value for key, value in kwargs.items() if key in (*arguments, *PLACEMENT, *KERNELS)},
    )
    model.name_or_path = model.config.name_or_path = source.config.name_or_path
    return (model, info) if wants_info else model


__all__ = ["GPT2_BUFFERS", "GPT2_LAYOUT", "load_any_layout", "register_gpt2_layout"]
