"""Read checkpoints of nanoGPT and of the book "Build a Large Language Model (From Scratch)"."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from ..modeling.configuration_scratch_gpt import ScratchGPTConfig
from ..modeling.modeling_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification


CONFIG_WORDS = {*ScratchGPTConfig().to_dict(), *ScratchGPTConfig.attribute_map, "drop_rate"}
# Parts of names that torch.compile, DDP, FSDP and activation checkpointing add.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Our names of tensors that are read or changed below; the book's out_head is HEAD, also in a classifier.
EMBEDDING, POSITIONS = "transformer.embed_tokens.weight", "transformer.embed_positions.weight"
NORM_BIAS, HEAD, HEAD_BIAS = "transformer.norm.bias", "lm_head.weight", "lm_head.bias"

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
    # scale and shift, or the weight and bias of torch's LayerNorm in the book's GPTModelFast
    r"trf_blocks\.(\d+)\.norm([12])\.(?:scale|weight)": r"transformer.layers.\1.ln_\2.weight",
    r"trf_blocks\.(\d+)\.norm([12])\.(?:shift|bias)": r"transformer.layers.\1.ln_\2.bias",
    r"trf_blocks\.(\d+)\.att\.W_query\.(weight|bias)": r"transformer.layers.\1.attn.q_proj.\2",
    r"trf_blocks\.(\d+)\.att\.W_key\.(weight|bias)": r"transformer.layers.\1.attn.k_proj.\2",
    r"trf_blocks\.(\d+)\.att\.W_value\.(weight|bias)": r"transformer.layers.\1.attn.v_proj.\2",
    r"trf_blocks\.(\d+)\.att\.qkv\.(weight|bias)": r"transformer.layers.\1.attn.qkv.\2",  # GPTModelFast, split below
    r"trf_blocks\.(\d+)\.att\.(?:out_)?proj\.(weight|bias)": r"transformer.layers.\1.attn.o_proj.\2",
    r"trf_blocks\.(\d+)\.ff\.layers\.0\.(weight|bias)": r"transformer.layers.\1.mlp.up_proj.\2",
    r"trf_blocks\.(\d+)\.ff\.layers\.2\.(weight|bias)": r"transformer.layers.\1.mlp.down_proj.\2",
    r"final_norm\.(?:scale|weight)": r"transformer.norm.weight",
    r"final_norm\.(?:shift|bias)": r"transformer.norm.bias",
    r"out_head\.(weight|bias)": r"lm_head.\1",
    r"trf_blocks\.\d+\.att\.mask": None,  # the causal mask
}


def import_checkpoint(
    file: str | Path,
    config: PreTrainedConfig | Mapping[str, Any] | None = None,
    *,
    lora_scaling: float | None = None,
    **changes: Any,
) -> ScratchGPTForCausalLM:
    """Read nanoGPT's `ckpt.pt`, or a state dict of the book's GPTModel, as our model (in eval mode).

    The file is opened with `weights_only=True`, so a pickle that would run code is rejected; `.safetensors` is read
    too. Missing biases (nanoGPT's `bias=False`) become zeros, which compute the same. The book's LoRA layers are
    merged. `import_classifier` reads the book's classifier.

    Args:
        config: the config dict of the book's model, because no tensor shows the number of heads; nanoGPT's file has
            its own. All other sizes come from the tensors.
        lora_scaling: the factor of A @ B, if the model has LoRA layers; no tensor holds it. `alpha` in the printed
            book (16 in appendix E) and `alpha / rank` in its later code (1 there).
        changes: single fields, for instance `num_attention_heads=12`. The tensors' shapes override both.

    Raises:
        ValueError: another kind of file, tensors with other names or shapes, a classifier, an unknown number of heads,
            or a scaling that is missing or not needed.
    """
    tensors, arguments = _read_tensors(Path(file), lora_scaling, config, changes)
    if _classes(tensors) is not None:
        raise ValueError(
            f"{Path(file).name} is a classifier: its out_head has {_classes(tensors)} rows, and the vocabulary has "
            f"{len(tensors[EMBEDDING])} tokens. Read it with import_classifier."
        )
    tensors.setdefault(HEAD, tensors[EMBEDDING])
    tied = {"tie_word_embeddings": torch.equal(tensors[EMBEDDING], tensors[HEAD])}
    return _load(Path(file), ScratchGPTForCausalLM, tensors, arguments | tied)


def import_classifier(
    file: str | Path,
    config: PreTrainedConfig | Mapping[str, Any] | None = None,
    *,
    lora_scaling: float | None = None,
    **changes: Any,
) -> ScratchGPTForSequenceClassification:
    """Read a state dict of the book's classifier (chapter 6 and appendix E) as ours, in eval mode.

    Our head has no bias. The final norm's bias is changed to add the same numbers to the logits, which are equal up to
    rounding.

    The book pads its texts on the right and classifies at the last position, after the padding. For its logits, pad as
    in training (with token 50256, to the longest training text) and give no attention mask. With a mask, the last
    token of the text is classified.

    Args and errors are those of `import_checkpoint`; `id2label={0: "ham", 1: "spam"}` names the classes.
    """
    tensors, arguments = _read_tensors(Path(file), lora_scaling, config, changes)
    classes = _classes(tensors)
    if classes is None:
        raise ValueError(
            f"{Path(file).name} is a language model: its head has a row for each token of the vocabulary. Read it "
            "with import_checkpoint."
        )
    head, bias = tensors.pop(HEAD), tensors.pop(HEAD_BIAS, None)
    if bias is not None:
        # W (x + shift) = W x + bias
        shift = torch.linalg.pinv(head.double()) @ bias.double()
        if not torch.allclose(head.double() @ shift, bias.double(), atol=1e-6):
            raise ValueError(
                f"{Path(file).name} has a head with a bias that its weights cannot express, because rows of "
                "out_head.weight are equal or zero. Our head has no bias, so the file cannot be read."
            )
        tensors[NORM_BIAS] = (tensors.get(NORM_BIAS, torch.zeros_like(head[0])).double() + shift).to(head.dtype)
    tensors["score.weight"] = head
    names = arguments.get("id2label") or {number: f"LABEL_{number}" for number in range(classes)}
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return _load(Path(file), ScratchGPTForSequenceClassification, tensors, arguments | labels)


def _classes(tensors: dict[str, torch.Tensor]) -> int | None:
    # Return the number of classes, or None for a language model.
    rows = len(tensors.get(HEAD, tensors[EMBEDDING]))
    return None if rows == len(tensors[EMBEDDING]) and HEAD_BIAS not in tensors else rows


def _read_tensors(
    file: Path,
    lora_scaling: float | None,
    config: PreTrainedConfig | Mapping[str, Any] | None,
    changes: dict[str, Any],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    # Return the tensors by our names, and the fields of the config.
    weights, arguments = _open_checkpoint(file)
    is_book = any(name.startswith("trf_blocks.") for name in weights)
    defaults = {} if is_book else _read_nanogpt_arguments(file, arguments)
    overrides = config.to_diff_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    if unknown := sorted(set(changes) - CONFIG_WORDS):
        raise ValueError(f"Unknown config field {', '.join(unknown)}.")
    tensors = _rename(file, _merge_lora(file, weights, lora_scaling), BOOK_NAMES if is_book else NANOGPT_NAMES)
    arguments = {**defaults, **overrides, **changes}
    fields = {ScratchGPTConfig.attribute_map.get(name, name): value for name, value in arguments.items()}
    fields |= _read_shapes(tensors)
    if "num_attention_heads" not in fields:
        raise ValueError(
            f"{file.name} does not say how many attention heads it has, and no tensor shows it. Give "
            "num_attention_heads=N, or config= with the model's config dict."
        )
    return tensors, {name: value for name, value in fields.items() if name in CONFIG_WORDS}


def _load(file: Path, model_class: Any, tensors: dict[str, torch.Tensor], fields: dict[str, Any]) -> Any:
    model = model_class(ScratchGPTConfig(**fields))
    for name, tensor in model.state_dict().items():
        if name.endswith(".bias"):
            tensors.setdefault(name, torch.zeros_like(tensor))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{file.name} is not a complete GPT: {' '.join(str(error).split())[:400]}") from error
    return model.eval()


def _open_checkpoint(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    # Return the state dict without the names of wrappers, and nanoGPT's model arguments.
    if not file.is_file():
        raise ValueError(f"{file} does not exist.")
    content: Any
    try:
        is_safetensors = file.suffix == ".safetensors"
        content = load_file(file) if is_safetensors else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch raise different types
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
    weights = {_unwrapped(str(name)): value for name, value in content.items() if torch.is_tensor(value)}
    return weights, arguments


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _merge_lora(file: Path, weights: dict[str, torch.Tensor], scaling: float | None) -> dict[str, torch.Tensor]:
    # Return the weights with each LinearWithLoRA of the book as one linear layer: W + scaling * (A @ B)^T.
    layers = {name.rsplit(".lora.", 1)[0] for name in weights if ".lora." in name}
    if scaling is None:
        if layers:
            raise ValueError(
                f"{file.name} has {len(layers)} LoRA layers, and no tensor holds their scaling. Give lora_scaling=N: "
                "alpha in the printed book (16 in appendix E), alpha / rank in its later code (1)."
            )
        return weights
    if not layers:
        raise ValueError(f"{file.name} has no LoRA layers. Remove lora_scaling.")
    merged = dict(weights)
    for layer in layers:
        names = [f"{layer}.{part}" for part in ("linear.weight", "lora.A", "lora.B")]
        if missing := [name for name in names if name not in merged]:
            raise ValueError(f"{file.name} is not a complete GPT: it has no {missing[0]}.")
        weight, a, b = (merged.pop(name) for name in names)
        merged[f"{layer}.weight"] = weight + scaling * (a @ b).T
        if f"{layer}.linear.bias" in merged:
            merged[f"{layer}.bias"] = merged.pop(f"{layer}.linear.bias")
    return merged


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
    if EMBEDDING not in tensors or POSITIONS not in tensors:
        raise ValueError(
            f"{file.name} is not a GPT of nanoGPT or of the book: it has no token and position embeddings."
        )
    return tensors


def _read_shapes(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    tokens = tensors[EMBEDDING]
    layers = [int(name.split(".")[2]) for name in tensors if name.startswith("transformer.layers.")]
    shape = {
        "vocab_size": tokens.shape[0],
        "hidden_size": tokens.shape[1],
        "max_position_embeddings": tensors[POSITIONS].shape[0],
        "num_hidden_layers": max(layers, default=-1) + 1,
        "attention_bias": "transformer.layers.0.attn.q_proj.bias" in tensors,
    }
    up = tensors.get("transformer.layers.0.mlp.up_proj.weight")
    return shape if up is None else {**shape, "intermediate_size": up.shape[0]}


__all__ = ["import_checkpoint", "import_classifier"]
