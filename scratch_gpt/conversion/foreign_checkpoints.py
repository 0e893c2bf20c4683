"""Read checkpoints of nanoGPT and of the book "Build a Large Language Model (From Scratch)"."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..modeling.configuration_scratch_gpt import ScratchGPTConfig
from ..modeling.modeling_scratch_gpt import ScratchGPTForCausalLM


CONFIG_WORDS = {*ScratchGPTConfig().to_dict(), *ScratchGPTConfig.attribute_map, "drop_rate"}


# nanoGPT's and the book's tensor names, and ours. Both use nn.Linear, so nothing is transposed.
NANOGPT_NAMES = {
    r"transformer\.wte\.weight": r"transformer.embed_tokens.weight",
    r"transformer\.wpe\.weight": r"transformer.embed_positions.weight",
    r"transformer\.h\.(\d+)\.(ln_[12])\.(weight|bias)": r"transformer.layers.\1.\2.\3",
    r"transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias)": r"transformer.layers.\1.attn.qkv.\2",  # split below
    r"transformer\.h\.(\d+)\.attn\.c_proj\.(weight|bias)": r"transformer.layers.\1.attn.o_proj.\2",
    r"transformer\.h\.(\d+)\.mlp\.c_fc\.(weight|bias)": r"transformer.layers.\1.mlp.up_proj.\2",
    r"transformer\.h\.(\d+)\.mlp\.c_proj\.(weight|bias)": r"transformer.layers.\1.mlp.down_proj.\2",
    r"transformer\.ln_f\.(weight|bias)": r"transformer.norm.\1",
    r"lm_head\.weight": r"lm_head.weight",
    r"transformer\.h\.\d+\.attn\.bias": None,  # the causal mask, kept as a buffer by old versions
}
BOOK_NAMES = {
    r"tok_emb\.weight": r"transformer.embed_tokens.weight",
    r"pos_emb\.weight": r"transformer.embed_positions.weight",
    r"trf_blocks\.(\d+)\.norm([12])\.scale": r"transformer.layers.\1.ln_\2.weight",
    r"trf_blocks\.(\d+)\.norm([12])\.shift": r"transformer.layers.\1.ln_\2.bias",
    r"trf_blocks\.(\d+)\.att\.W_query\.(weight|bias)": r"transformer.layers.\1.attn.q_proj.\2",
    r"trf_blocks\.(\d+)\.att\.W_key\.(weight|bias)": r"transformer.layers.\1.attn.k_proj.\2",
    r"trf_blocks\.(\d+)\.att\.W_value\.(weight|bias)": r"transformer.layers.\1.attn.v_proj.\2",
    r"trf_blocks\.(\d+)\.att\.out_proj\.(weight|bias)": r"transformer.layers.\1.attn.o_proj.\2",
    r"trf_blocks\.(\d+)\.ff\.layers\.0\.(weight|bias)": r"transformer.layers.\1.mlp.up_proj.\2",
    r"trf_blocks\.(\d+)\.ff\.layers\.2\.(weight|bias)": r"transformer.layers.\1.mlp.down_proj.\2",
    r"final_norm\.scale": r"transformer.norm.weight",
    r"final_norm\.shift": r"transformer.norm.bias",
    r"out_head\.weight": r"lm_head.weight",
    r"trf_blocks\.\d+\.att\.mask": None,  # the causal mask
}


def import_checkpoint(
    file: str | Path, config: PreTrainedConfig | Mapping[str, Any] | None = None, **changes: Any
) -> ScratchGPTForCausalLM:
    """Read nanoGPT's `ckpt.pt`, or a state dict of the book's GPTModel, as our model (in eval mode).

    The file is opened with `weights_only=True`, so a pickle that would run code is rejected. Missing biases (nanoGPT's
    `bias=False`) become zeros, which compute the same. nanoGPT uses the exact GELU, the book the tanh form.

    Args:
        config: the config dict of the book's model, because no tensor shows the number of heads; nanoGPT's file has
            its own. All other sizes come from the tensors.
        changes: single fields, for instance `num_attention_heads=12`. The tensors' shapes override both.

    Raises:
        ValueError: another kind of file, tensors with other names or shapes, or an unknown number of heads.
    """
    file = Path(file)
    weights, arguments = _open_checkpoint(file)
    is_book = any(name.startswith("trf_blocks.") for name in weights)
    defaults = {} if is_book else _read_nanogpt_arguments(file, arguments)
    overrides = config.to_diff_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    if unknown := sorted(set(changes) - CONFIG_WORDS):
        raise ValueError(f"Unknown config field {', '.join(unknown)}.")
    tensors = _rename(file, weights, BOOK_NAMES if is_book else NANOGPT_NAMES)
    tensors.setdefault("lm_head.weight", tensors["transformer.embed_tokens.weight"])
    arguments = {**defaults, **overrides, **changes}
    fields = {ScratchGPTConfig.attribute_map.get(name, name): value for name, value in arguments.items()}
    fields |= _read_shapes(tensors)
    if "num_attention_heads" not in fields:
        raise ValueError(
            f"{file.name} does not say how many attention heads it has, and no tensor shows it. Give "
            "import_checkpoint(..., num_attention_heads=N), or config= with the model's config dict."
        )
    model = ScratchGPTForCausalLM(
        ScratchGPTConfig(**{name: value for name, value in fields.items() if name in CONFIG_WORDS})
    )
    for name, tensor in model.state_dict().items():
        if name.endswith(".bias"):
            tensors.setdefault(name, torch.zeros_like(tensor))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{file.name} is not a complete GPT: {' '.join(str(error).split())[:400]}") from error
    return model.eval()


def _open_checkpoint(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    # Return the state dict without torch.compile's prefix, and nanoGPT's model arguments.
    if not file.is_file():
        raise ValueError(f"{file} does not exist.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise different types
        raise ValueError(
            f"{file.name} cannot be opened as a file of tensors. It is damaged, or a pickle of other objects, which "
            "can run code. Save only the model's state_dict, and give that file."
        ) from error
    content = content if isinstance(content, dict) else {}
    arguments = dict(content.get("model_args") or {})
    for key in ("model", "model_state_dict", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    weights = {
        str(name).removeprefix("_orig_mod."): value for name, value in content.items() if torch.is_tensor(value)
    }
    return weights, arguments


def _read_nanogpt_arguments(file: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(arguments) - {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}:
        raise ValueError(f"{file.name} is from another GPT than nanoGPT's: it has {', '.join(sorted(unknown))}.")
    fields = {"hidden_act": "gelu", "drop_rate": arguments.get("dropout", 0.0)}
    return {**fields, **{name: arguments[name] for name in ("n_head",) if name in arguments}}


def _rename(file: Path, weights: dict[str, torch.Tensor], table: dict[str, str | None]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        matches = [(pattern, target) for pattern, target in table.items() if re.fullmatch(pattern, name)]
        if not matches:
            raise ValueError(
                f"{file.name} has a tensor {name!r}, which neither nanoGPT's GPT nor the book's GPTModel has. For a "
                "Hugging Face folder use from_pretrained."
            )
        pattern, target = matches[0]
        if target is None:
            continue
        target = re.sub(pattern, target, name)
        if ".attn.qkv." in target:  # (3D, D): query, key and value one after another
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                tensors[target.replace(".qkv.", f".{part}_proj.")] = rows
        else:
            tensors[target] = tensor
    if "transformer.embed_tokens.weight" not in tensors or "transformer.embed_positions.weight" not in tensors:
        raise ValueError(
            f"{file.name} is not a GPT of nanoGPT or of the book: it has no token and position embeddings."
        )
    return tensors


def _read_shapes(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    tokens, head = tensors["transformer.embed_tokens.weight"], tensors["lm_head.weight"]
    layers = [int(name.split(".")[2]) for name in tensors if name.startswith("transformer.layers.")]
    shape = {
        "vocab_size": tokens.shape[0],
        "hidden_size": tokens.shape[1],
        "max_position_embeddings": tensors["transformer.embed_positions.weight"].shape[0],
        "num_hidden_layers": max(layers, default=-1) + 1,
        "attention_bias": "transformer.layers.0.attn.q_proj.bias" in tensors,
        "tie_word_embeddings": torch.equal(tokens, head),
    }
    up = tensors.get("transformer.layers.0.mlp.up_proj.weight")
    return shape if up is None else {**shape, "intermediate_size": up.shape[0]}


__all__ = ["import_checkpoint"]
