"""GPT-2's tensor names and layouts <-> ours: one declared table that transformers' loader runs both ways.

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
or quantize therefore stop at this layout, and `from_pretrained` converts the whole model first.
This file travels inside every checkpoint.
"""

from contextvars import ContextVar

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
# transformers' Transpose copies; its Chunk does so in some versions only, and would copy what Transpose has copied.


class _TransposedView(Transpose):
    """Transpose without a copy, for the copy that `_OwnedChunk` makes of each part."""

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        target = self.get_target_pattern(input_dict, source_patterns, target_patterns)
        tensors = next(iter(input_dict.values()))
        return {target: (tensors[0] if isinstance(tensors, list) else tensors).transpose(self.dim0, self.dim1)}


class _OwnedChunk(Chunk):
    """Chunk into equal parts, each in contiguous memory of its own.

    Raises:
        LayoutNotConverted: the load shards or quantizes, or the stored model is quantized.
    """

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, model=None, **kwargs):
        if shards_or_quantizes.get() or getattr(model, "is_quantized", False):
            raise LayoutNotConverted("Tensors in GPT-2's layout cannot be sharded or quantized while they are read.")
        tensors = next(iter(input_dict.values()))
        parts = (tensors[0] if isinstance(tensors, list) else tensors).chunk(len(target_patterns), dim=self.dim)
        parts = (part.clone(memory_format=torch.contiguous_format) for part in parts)
        return dict(zip(target_patterns, parts, strict=True))


def _renamed(theirs: str, ours: str) -> WeightRenaming:
    # Anchored on both sides: on the way back `norm.` must not match inside another module's name.
    return WeightRenaming(rf"(^|\.){theirs}\.", rf"\1{ours}\.")


def _projection(theirs: str, ours: str) -> list:
    return [
        WeightConverter(rf"\.{theirs}\.weight", rf"\.{ours}\.weight", [Transpose(0, 1)]),
        WeightRenaming(rf"\.{theirs}\.bias", rf"\.{ours}\.bias"),
    ]


_QKV = [f".attn.{name}_proj." for name in "qkv"]

GPT2_LAYOUT = [
    _renamed("wte", "embed_tokens"),
    _renamed("wpe", "embed_positions"),
    _renamed("h", "layers"),
    _renamed("ln_f", "norm"),
    WeightConverter(
        r"\.attn\.c_attn\.weight", [name + "weight" for name in _QKV], [_TransposedView(0, 1), _OwnedChunk(0)]
    ),
    WeightConverter(r"\.attn\.c_attn\.bias", [name + "bias" for name in _QKV], [_OwnedChunk(0)]),
    *_projection(r"attn\.c_proj", r"attn\.o_proj"),
    *_projection(r"mlp\.c_fc", r"mlp\.up_proj"),
    *_projection(r"mlp\.c_proj", r"mlp\.down_proj"),
]

# Causal-mask buffers that old GPT-2 checkpoints carry. Ours are made in forward.
GPT2_BUFFERS = [r"attn\.(masked_)?bias$"]


def register_gpt2_layout(model_type: str) -> None:
    """Let `from_pretrained` of `model_type` read GPT-2 checkpoints. Safe to call again (remote code does)."""
    register_checkpoint_conversion_mapping(model_type, GPT2_LAYOUT, overwrite=True)


__all__ = ["GPT2_BUFFERS", "GPT2_LAYOUT", "register_gpt2_layout"]
