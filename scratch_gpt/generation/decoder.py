"""Make decoders, which compute the logits of the next token of a causal model and keep its KV cache.

`make_decoder` chooses: FastDecoder for our own unmodified model, with a step optimized for few tokens, or
ForwardDecoder for any other model, with its ordinary forward. Without int8 both give the same logits, up to rounding.

B rows, T new tokens, N = B * T, S columns of the cache, L blocks, H heads, K head size, D width, V vocabulary.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from ..utils.memory import huge_pages
from .compiled_step import ACTIVATIONS, LANES, CompiledNet, build_step
from .matmul import MATMUL_KINDS, Matrix, lay_out, multiply


class ForwardDecoder:
    """Decode any causal model with its own forward and its own cache."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.cache: Any = None  # transformers' Cache, of the kind that the model returns
        get_base_model = getattr(model, "get_base_model", None)
        base = model if get_base_model is None else get_base_model()  # peft's wrapper has a generic signature
        names = inspect.signature(base.forward).parameters
        self.takes_positions = "position_ids" in names
        self.cache_name = "cache" if "cache" in names else "past_key_values"  # transformers 5.24 renamed it
        self.drawn = self.guessed = self.accepted = 0  # counts of tokens; accepted: guessed and then drawn

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def config(self) -> PreTrainedConfig:
        return cast(PreTrainedConfig, self.model.config)

    def start(self, ids: torch.Tensor, mask: torch.Tensor, columns: int) -> torch.Tensor:
        """Return the logits (B, 1, V) of the last position of a prompt (B, T).

        Args:
            columns: the largest number of tokens that the text will have, including the prompt.
        """
        output = self.model(ids, **self._position_arguments(ids, mask), use_cache=True, logits_to_keep=1)
        self.cache = self._cache_of(output)
        return output.logits[:, -1:]

    def step(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, T, V) of new ids (B, T), with the mask (B, past + T) of all ids so far.

        Cache entries after `past` are dropped.
        """
        past = mask.shape[1] - ids.shape[1]
        if self.cache is not None and (surplus := self.cache.get_seq_length() - past):
            self.cache.crop(-surplus)
        output = self.model(
            ids, **self._position_arguments(ids, mask), use_cache=True, **{self.cache_name: self.cache}
        )
        self.cache = self._cache_of(output)
        return output.logits

    def window(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, 1, V) of the last position of a context (B, T), without a cache."""
        return self.model(ids, **self._position_arguments(ids, mask), use_cache=False, logits_to_keep=1).logits[:, -1:]

    @staticmethod
    def _cache_of(output: Any) -> Any:
        return output.cache if hasattr(output, "cache") else output.past_key_values

    def _position_arguments(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        # Padding has no position. Our model derives positions from the mask; most others need them as an argument.
        if mask.all() or not self.takes_positions:
            return {"attention_mask": mask}
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # (B, T)
        return {"attention_mask": mask, "position_ids": positions}


class FastDecoder(ForwardDecoder):
    """Decode our own model with a cache of fixed size, its blocks written as plain tensor operations.

    Full windows use the model's forward. Prompts do too, except in int8.

    The matrices are copied once, in the layout that multiplies few rows fastest: at once with int8 or compile,
    otherwise at the first step. The model keeps its own copy, so both need 2 times the model's memory; with int8 the
    model's memory and two bytes for each parameter. A decoder can be used many times while the weights do not change.
    It shares norms, biases and embeddings with the model, so after a training step it mixes old and new weights.

    Args:
        quantize: "int8" stores the matrices and the head as integers, each output channel scaled by its largest
            weight, and multiplies them with activations rounded to 8 bits, each row by its range (at least 0.016).
            Embeddings, norms, attention and the cache keep the model's type.
        compile: in fp32 or int8, steps of few tokens run in one function in C (compiled_step.py), which the machine's
            compiler builds first, in a second or two. The arithmetic is the same, with cache and logits in fp32. It
            reads fp32 matrices from the model and copies only those of query, key and value.

    Raises:
        ValueError: quantize is unknown; int8 or compile on a device other than a CPU; int8 with a torch without
            oneDNN; compile with a type other than fp32 or int8, with unsupported widths, or without a compiler.
    """

    def __init__(self, model: nn.Module, quantize: str | None = None, compile: bool = False):
        super().__init__(model)
        own: Any = model  # ScratchGPTForCausalLM, which this package does not import
        self.body, self.head = own.transformer, cast(nn.Linear, own.lm_head)
        device, dtype = self.device, self.head.weight.dtype
        if quantize == "int8" and device.type != "cpu":
            raise ValueError(f"quantize='int8' needs a CPU, but this model is on {device}. Decode without it there.")
        if quantize == "int8" and not torch.backends.mkldnn.is_available():
            raise ValueError("quantize='int8' needs oneDNN, which this torch lacks. Decode without quantize.")
        if compile and (device.type != "cpu" or (dtype != torch.float32 and quantize is None)):
            raise ValueError(
                f"compile supports fp32 and int8 on a CPU, but this model is in {dtype} on {device}. Pass "
                "quantize='int8' or compile=False."
            )
        widths = self.body.layers[0].mlp.up_proj.weight.shape
        if compile and quantize is None and any(width % LANES for width in widths):
            raise ValueError(
                f"compile in fp32 needs widths that are multiples of {LANES}, but the model's width is {widths[1]} "
                f"and the MLP's {widths[0]}. Pass quantize='int8' or compile=False."
            )
        self.quantize, self.compile = quantize, compile
        if quantize or compile:  # pack now, one matrix per thread; the head is the largest and comes first
            with warnings.catch_warnings(), huge_pages(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
                warnings.simplefilter("ignore", UserWarning)  # torch will remove FBGEMM's operations
                library = pool.submit(build_step) if compile else None
                net = self._lay_out(pool.map)
                self.net = net if library is None else CompiledNet(net, library.result())

    @cached_property
    def net(self) -> "Net | CompiledNet":
        return self._lay_out(map)

    def _lay_out(self, map_layers: Callable[..., Iterable]) -> "Net":
        def convert(layer: nn.Module) -> "Matrix | Block":
            return self._matrix(self.head) if layer is self.head else self._block(layer)

        head, *blocks = map_layers(convert, [self.head, *self.body.layers])
        net = Net(blocks, layer_norm(self.body.norm), head, self.config.hidden_act)
        return scripted(net) if self.device.type == "cpu" else net

    def _block(self, block: Any) -> "Block":
        attention, mlp = block.attn, block.mlp
        return Block(
            norm_1=layer_norm(block.ln_1),
            qkv=self._matrix(attention.q_proj, attention.k_proj, attention.v_proj),  # (3D, D)
            out=self._matrix(attention.o_proj),
            norm_2=layer_norm(block.ln_2),
            up=self._matrix(mlp.up_proj),
            down=self._matrix(mlp.down_proj),
        )

    def _matrix(self, *layers: nn.Linear) -> Matrix:
        bias = None if layers[0].bias is None else stacked([layer.bias for layer in layers])
        return lay_out(stacked([layer.weight for layer in layers]), bias, self.quantize, self.compile)

    @torch.inference_mode()
    def start(self, ids: torch.Tensor, mask: torch.Tensor, columns: int) -> torch.Tensor:
        (B, T), attention = ids.shape, self.body.layers[0].attn
        hidden = mask[:, :T] == 0
        self.padding = hidden.sum(1, keepdim=True) if hidden.any() else None  # (B, 1): columns without a position
        H, K = self.config.num_attention_heads, attention.head_dim
        shape = (len(self.body.layers), 2, B, H, max(columns, T), K)
        dtype = torch.float32 if self.compile else self.head.weight.dtype
        self.key_values = torch.empty(shape, dtype=dtype, device=ids.device)
        if self.quantize:  # int8 is the fastest for many rows too
            return self._score(ids, mask[:, :T], only_last=True)
        logits = super().start(ids, mask, columns)
        for key_values, layer in zip(self.key_values, self.cache.layers, strict=True):
            key_values[0, :, :, :T], key_values[1, :, :, :T] = layer.keys, layer.values
        self.cache = None
        return logits

    @torch.inference_mode()
    def step(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self._score(ids, mask)

    def _score(self, ids: torch.Tensor, mask: torch.Tensor, only_last: bool = False) -> torch.Tensor:
        """Return the logits (B, T or 1, V) of new ids (B, T), with the mask (B, S) of all ids so far."""
        (B, T), S = ids.shape, mask.shape[1]
        past, body, columns = S - T, self.body, self.key_values.shape[4]
        if S > columns:
            raise ValueError(f"The cache was started for {columns} tokens, but the text has {S}.")
        positions = torch.arange(past, S, device=ids.device)[None]
        if self.padding is not None:
            positions = (positions - self.padding).clamp(min=0)
        x = F.embedding(ids, body.embed_tokens.weight) + F.embedding(positions, body.embed_positions.weight)
        x = x.view(B * T, -1)  # (N, D)
        is_causal = self.padding is None and past == 0
        score_mask = None if is_causal else self._score_mask(mask, T, x.dtype)
        return self.net(x, self.key_values, past, score_mask, only_last)

    def _score_mask(self, mask: torch.Tensor, T: int, dtype: torch.dtype) -> torch.Tensor | None:
        # (B or 1, 1, T, S), added to the scores; None if every new token sees every column. Hidden columns get the
        # lowest finite number: padding sees no column, and its outputs must be finite although they are never read.
        if T == 1 and self.padding is None:
            return None
        S = mask.shape[1]
        visible = torch.ones(T, S, dtype=torch.bool, device=mask.device).tril(S - T)
        if self.padding is not None:
            visible = visible & (mask != 0)[:, None, None]
        lowest = torch.finfo(dtype).min
        score_mask = torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill_(~visible, lowest)
        return score_mask.view(-1, 1, T, S)


# --- The blocks as plain tensor operations -----------------------------------------------------------------------


class Norm(NamedTuple):
    """The parameters of a LayerNorm."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


class Block(NamedTuple):
    """The two norms and four matrices of a block."""

    norm_1: Norm
    qkv: Matrix
    out: Matrix
    norm_2: Norm
    up: Matrix
    down: Matrix


def stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors along the first dimension; a single tensor is not copied."""
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).detach()


def layer_norm(layer: nn.LayerNorm) -> Norm:
    return Norm(layer.weight.detach(), layer.bias.detach(), layer.eps)


def run_blocks(
    x: torch.Tensor,
    key_values: torch.Tensor,
    past: int,
    score_mask: torch.Tensor | None,
    blocks: list[Block],
    act: str,
) -> torch.Tensor:
    """Run new tokens (N, D) through the blocks and write their keys and values into the cache.

    The cache `key_values` (L, 2, B, H, columns, K) is filled up to column `past`. `score_mask` (B or 1, 1, T, S) is
    added to the scores.
    """
    B, H, K = key_values.shape[2], key_values.shape[3], key_values.shape[5]
    T = len(x) // B
    S = past + T
    is_causal = past == 0 and score_mask is None
    columns = key_values[:, :, :, :, :S].unbind(0)  # of each layer, a view (2, B, H, S, K)
    new_columns = key_values[:, :, :, :, past:S].unbind(0)  # (2, B, H, T, K)
    for layer, block in enumerate(blocks):
        y = multiply(normalize_hidden(x, block.norm_1), block.qkv).view(B, T, 3, H, K).permute(2, 0, 3, 1, 4)
        new_columns[layer].copy_(y[1:])
        kv = columns[layer].to(x.dtype)
        y = F.scaled_dot_product_attention(y[0], kv[0], kv[1], score_mask, 0.0, is_causal)  # (B, H, T, K)
        x = x + multiply(y.transpose(1, 2).reshape(B * T, H * K), block.out)
        y = activate(multiply(normalize_hidden(x, block.norm_2), block.up), act)
        x = x + multiply(y, block.down)
    return x


class Net(nn.Module):
    """The layers of a step: the blocks, the last norm and the head."""

    blocks: list[Block]
    norm: Norm
    head: Matrix

    def __init__(self, blocks: list[Block], norm: Norm, head: Matrix, act: str):
        super().__init__()
        self.blocks, self.norm, self.head, self.act = blocks, norm, head, act

    def forward(
        self, x: torch.Tensor, key_values: torch.Tensor, past: int, score_mask: torch.Tensor | None, only_last: bool
    ) -> torch.Tensor:
        """Return the logits (B, T, V), or only of each row's last token (B, 1, V); see `run_blocks`."""
        B, D = key_values.shape[2], x.shape[-1]
        x = run_blocks(x, key_values, past, score_mask, self.blocks, self.act).view(B, -1, D)
        x = x[:, -1:] if only_last else x
        logits = multiply(normalize_hidden(x.reshape(-1, x.shape[-1]), self.norm), self.head)
        return logits.view(x.shape[0], x.shape[1], -1)


def scripted(net: Net) -> Net:
    """Compile a Net with TorchScript, which halves the time of a step of one row; unchanged if that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return cast(Net, torch.jit.script(net))
    except Exception:  # torch has deprecated TorchScript, and it needs this file's source
        return net


def normalize_hidden(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return F.layer_norm(x, [x.shape[-1]], norm.weight, norm.bias, norm.eps)


def activate(x: torch.Tensor, name: str) -> torch.Tensor:
    """Apply the activation of this name, one of ACTIVATIONS."""
    if name == "relu":
        return F.relu(x)
    if name == "silu" or name == "swish":
        return F.silu(x)
    return F.gelu(x, approximate="none" if name == "gelu" else "tanh")


# --- Choosing a decoder ------------------------------------------------------------------------------------------


def make_decoder(
    model: nn.Module | ForwardDecoder, quantize: str | None = None, compile: bool = False
) -> ForwardDecoder:
    """Return the fastest decoder for a causal model, or the argument if it is a decoder already.

    FastDecoder supports our own class only, as saved: on one device, with one of ACTIVATIONS, without an adapter,
    quantized layers, hooks, autocast or a wrapper. Any other model is decoded with its own forward.

    Args:
        quantize: "int8" rounds the matrices, see FastDecoder.
        compile: builds the step in C, see FastDecoder.

    Raises:
        ValueError: quantize is unknown; int8 or compile with a model that is not ours, is wrapped, or is not on a CPU;
            compile with a type other than fp32 or int8, with unsupported widths, or without a compiler.
    """
    if isinstance(model, ForwardDecoder) and quantize is None and not compile:
        return model
    if quantize not in MATMUL_KINDS:
        raise ValueError(f"quantize is {quantize!r}; it must be 'int8', or None to keep the weights as they are.")
    model = cast(nn.Module, model)  # if it is a decoder, an error below names its class
    if _is_plain(model):
        return FastDecoder(model, quantize, compile)
    if quantize is not None or compile:
        options = [f"quantize={quantize!r}"] * (quantize is not None) + ["compile=True"] * compile
        raise ValueError(
            f"{' and '.join(options)} needs our own model as it was saved, with unchanged layers and one of the "
            f"activations {', '.join(ACTIVATIONS)}. This {type(model).__name__} is not such a model. Merge an adapter "
            f"first, or remove {' and '.join(option.partition('=')[0] for option in options)}."
        )
    return ForwardDecoder(model)


def _is_plain(model: nn.Module) -> bool:
    # Checkpoints also carry the code of our model, so its class is recognized by its name.
    if type(model).__name__ != "ScratchGPTForCausalLM" or torch.is_autocast_enabled(
        next(model.parameters()).device.type
    ):
        return False
    hooks = ("_forward_pre_hooks", "_forward_hooks", "parametrizations")
    return (
        cast(PreTrainedConfig, model.config).hidden_act in ACTIVATIONS
        and len({(p.device, p.dtype, type(p)) for p in model.parameters()}) == 1
        and all(type(m) is nn.Linear for name, m in model.named_modules() if name.endswith(("_proj", "lm_head")))
        and not any("forward" in vars(m) or any(getattr(m, name, None) for name in hooks) for m in model.modules())
    )


__all__ = ["FastDecoder", "ForwardDecoder", "make_decoder"]
