"""Write a model in the layout of stock GPT-2."""

import os
import re
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from transformers import GPT2Config, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from ..modeling.gpt2_layout import GPT2_LAYOUT
from ..tokenization.tokenizer import load_tokenizer
from .load import STOCK_CLASSES, load_any_head, own_class


# our field: GPT-2's
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "embed_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "resid_dropout": "resid_pdrop",
    "layer_norm_eps": "layer_norm_epsilon",
    **{name: name for name in ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache")},
    **{name: name for name in ("tie_word_embeddings", "id2label", "label2id", "problem_type", "dtype")},
}


def export_gpt2(
    model_or_dir: PreTrainedModel | str | Path,
    out_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a folder in stock GPT-2's format, which transformers loads without our package or remote code.

    Missing query, key and value biases are written as zeros, an untied head as `tie_word_embeddings: false`. If
    `model` is a folder, its tokenizer is copied too; with a model object, pass the tokenizer.

    Raises:
        ValueError: GPT-2 cannot represent the model, or out_dir is not empty. Nothing is written then.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(f"{out_dir} exists and is not an empty folder. Choose another.")
    if isinstance(model_or_dir, (str, Path)):
        model: PreTrainedModel = load_any_head(Path(model_or_dir))
        if tokenizer is None and (Path(model_or_dir) / "tokenizer_config.json").exists():
            tokenizer = load_tokenizer(model_or_dir)
    else:
        model = model_or_dir
    check_exportable_to_gpt2(model)

    kind = own_class(model)
    assert kind is not None  # checked above
    stock_class = STOCK_CLASSES[kind]
    config = GPT2Config(
        **{gpt2_name: getattr(model.config, name) for name, gpt2_name in CONFIG_NAMES.items()},
        activation_function="gelu_new",
        architectures=[stock_class.__name__],
    )
    with torch.device("meta"):
        stock = stock_class(config)
    weights = _to_gpt2(model)
    stock.load_state_dict(weights, assign=True)
    stock.tie_weights()
    stock.generation_config = getattr(model, "generation_config", None)

    out_dir.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:  # so that the folder is complete or not written
        stock.save_pretrained(draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        draft.chmod(0o755)
        os.replace(draft, out_dir)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return out_dir


def check_exportable_to_gpt2(model: PreTrainedModel) -> None:
    """Raise a ValueError if GPT-2's format cannot represent this model; it names the first reason."""
    if any(hasattr(module, "lora_A") or hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError("The model has an unmerged adapter, which GPT-2 cannot represent. Merge it first.")
    if own_class(model) is None:
        raise ValueError(f"A {type(model).__name__} is not one of {', '.join(cls.__name__ for cls in STOCK_CLASSES)}.")
    config = model.config
    if config.hidden_act not in ("gelu_pytorch_tanh", "gelu_new"):  # two names of one function
        raise ValueError(f"hidden_act {config.hidden_act!r} is not GPT-2's GELU (tanh form): it cannot be exported.")
    # Config fields that GPT-2's config does not have, or that are not needed after training.
    fields = {*CONFIG_NAMES, "hidden_act", "attention_bias", "architectures", "auto_map", "transformers_version"}
    fields.add("embedding_initializer_range")
    extra = set(config.to_diff_dict()) - fields - set(GPT2Config().to_dict()) - {"model_type"}
    if extra:
        raise ValueError(
            f"The config fields {', '.join(sorted(extra))} are unknown to GPT-2, so the model cannot be exported."
        )


def _to_gpt2(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    # Convert our names and layout to GPT-2's, by the table that loading uses in the other direction.
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name in [name for name in weights if re.search(r"attn\.[qkv]_proj\.weight$", name)]:
        bias = name.removesuffix("weight") + "bias"
        weights.setdefault(bias, torch.zeros(weights[name].shape[0], dtype=weights[name].dtype))
    # transformers reverts the conversions that a model object records; this one records the complete table.
    record = SimpleNamespace(config=model.config, _weight_conversions=deepcopy(GPT2_LAYOUT))
    return revert_weight_conversion(cast(PreTrainedModel, record), weights)


__all__ = ["check_exportable_to_gpt2", "export_gpt2"]
