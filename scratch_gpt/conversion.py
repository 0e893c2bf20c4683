"""Other projects' GPT-2 shaped checkpoints <-> ours: stock GPT-2 folders out, nanoGPT's and the book's files in.

(Stock GPT-2 comes in through `from_pretrained` itself, by the table in modeling/gpt2_layout.py.)
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from .adapter_loading import find_adapter, load_adapted
from .checkpoints import WEIGHTS, check_shapes, find_damage, read_state
from .foreign import one_error
from .loading import explain, load_complete
from .modeling.configuration_scratch_gpt import ScratchGPTConfig
from .modeling.gpt2_layout import GPT2_LAYOUT
from .modeling.modeling_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTModel,
    ScratchGPTPreTrainedModel,
)
from .tokenizer import load_tokenizer


ModelT = TypeVar("ModelT", bound=ScratchGPTPreTrainedModel)
STOCK_CLASSES = {
    ScratchGPTModel: GPT2Model,
    ScratchGPTForCausalLM: GPT2LMHeadModel,
    ScratchGPTForSequenceClassification: GPT2ForSequenceClassification,
}
# our field -> GPT-2's
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


CONFIG_WORDS = {*ScratchGPTConfig().to_dict(), *ScratchGPTConfig.attribute_map, "drop_rate"}


# --- Out ---------------------------------------------------------------------------------------------------------


def export_gpt2(model_or_dir: PreTrainedModel | str | Path, out_dir: str | Path, tokenizer=None) -> Path:
    """Write a folder that is stock GPT-2: loaded by transformers alone, without our package or remote code.

    Absent query, key and value biases are written as zeros, an untied head as `tie_word_embeddings: false`. Of a
    folder, its tokenizer comes along; with a model, give it.

    Raises:
        ValueError: what GPT-2 cannot express, by name; or out_dir holds something. Nothing is written then.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(f"{out_dir} exists and is not an empty folder. Give another.")
    model = model_or_dir
    if isinstance(model_or_dir, (str, Path)):
        model = load_any_head(Path(model_or_dir))
        if tokenizer is None and (Path(model_or_dir) / "tokenizer_config.json").exists():
            tokenizer = load_tokenizer(model_or_dir)
    refuse_what_gpt2_cannot_say(model)

    stock_class = STOCK_CLASSES[own_class(model)]
    config = GPT2Config(
        **{theirs: getattr(model.config, ours) for ours, theirs in CONFIG_NAMES.items()},
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
    try:  # whole or not at all
        stock.save_pretrained(draft)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        draft.chmod(0o755)
        os.replace(draft, out_dir)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return out_dir


def load_any_head(folder: Path) -> ScratchGPTPreTrainedModel:
    """The model of a folder as the class that it was saved as; of a LoRA run's checkpoint, what it learned is merged.

    Raises:
        ValueError: the folder holds an adapter, a damaged file, or not all weights.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an unmerged adapter, which GPT-2 cannot express. Merge it into its base.")
    architectures = _read_config(str(folder), None).get("architectures") or []
    heads = {name: ours for ours, stock in STOCK_CLASSES.items() for name in (ours.__name__, stock.__name__)}
    kind = next((heads[name] for name in architectures if name in heads), ScratchGPTForCausalLM)
    if _lora_of(str(folder)) is not None:
        return _load_lora_checkpoint(str(folder), kind, {})
    return load_complete(kind, folder)


def own_class(model: nn.Module) -> type[ScratchGPTPreTrainedModel] | None:
    """Return the class of ours that a model is, also if its code came with its folder; None for any other model."""
    if getattr(getattr(model, "config", None), "model_type", None) != ScratchGPTConfig.model_type:
        return None
    heads = {"lm_head": ScratchGPTForCausalLM, "score": ScratchGPTForSequenceClassification}
    kind = next((kind for head, kind in heads.items() if hasattr(model, head)), ScratchGPTModel)
    with torch.device("meta"):
        ours = kind(ScratchGPTConfig.from_dict(model.config.to_dict()))
    shapes = ({name: tensor.shape for name, tensor in each.state_dict().items()} for each in (model, ours))
    return kind if next(shapes) == next(shapes) else None


def refuse_what_gpt2_cannot_say(model: PreTrainedModel) -> None:
    """Raise a ValueError that names the first thing about a model for which GPT-2 has no word."""
    if any(hasattr(module, "lora_A") or hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError("The model carries an unmerged adapter, which GPT-2 cannot express. Merge it first.")
    if own_class(model) is None:
        raise ValueError(f"A {type(model).__name__} is none of {', '.join(cls.__name__ for cls in STOCK_CLASSES)}.")
    config = model.config
    if config.hidden_act not in ("gelu_pytorch_tanh", "gelu_new"):  # two names of one function
        raise ValueError(f"hidden_act {config.hidden_act!r} is not GPT-2's GELU (tanh form): it cannot be exported.")
    # A field that says something about the architecture and that GPT-2's config has no name for.
    ours = {*CONFIG_NAMES, "hidden_act", "attention_bias", "architectures", "auto_map", "transformers_version"}
    extra = set(config.to_diff_dict()) - ours - set(GPT2Config().to_dict()) - {"model_type"}
    if extra:
        raise ValueError(
            f"The config fields {', '.join(sorted(extra))} are unknown to GPT-2: they cannot be exported."
        )


def _to_gpt2(model: ScratchGPTPreTrainedModel) -> dict[str, torch.Tensor]:
    # Our names and layout -> GPT-2's, by the same table that loading runs forwards.
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name in [name for name in weights if re.search(r"attn\.[qkv]_proj\.weight$", name)]:
        bias = name.removesuffix("weight") + "bias"
        weights.setdefault(bias, torch.zeros(weights[name].shape[0], dtype=weights[name].dtype))
    # The loader undoes what a model object remembers of its loading: here, the whole table, whatever its history.
    remembered = SimpleNamespace(config=model.config, _weight_conversions=deepcopy(GPT2_LAYOUT))
    return revert_weight_conversion(remembered, weights)


# --- In ----------------------------------------------------------------------------------------------------------
# What nanoGPT and the book call our modules. Both use nn.Linear, so nothing is transposed.
NANOGPT_NAMES = {
    r"transformer\.wte\.weight": r"transformer.embed_tokens.weight",
    r"transformer\.wpe\.weight": r"transformer.embed_positions.weight",
    r"transformer\.h\.(\d+)\.(ln_[12])\.(weight|bias)": r"transformer.layers.\1.\2.\3",
    r"transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias)": r"transformer.layers.\1.attn.qkv.\2",  # cut in three below
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
    file: str | Path, config: ScratchGPTConfig | Mapping[str, Any] | None = None, **changes
) -> ScratchGPTForCausalLM:
    """Read nanoGPT's `ckpt.pt`, or a state dict of the book's GPTModel, as our model (in eval mode).

    The file is opened with `weights_only=True`: a pickle that would run code is refused. Biases that nanoGPT left out
    (`bias=False`) become zeros, which compute the same. nanoGPT's GELU is the exact one, the book's the tanh form.

    Args:
        config: for the book's file its config dict, since the number of heads is in no tensor; nanoGPT's file brings
            its own. Everything else is read off the tensors.
        changes: single fields, for instance `num_attention_heads=12`. What the tensors show wins over both.

    Raises:
        ValueError: another kind of file, tensors of other names or shapes, or an unknown number of heads.
    """
    file = Path(file)
    weights, arguments = _open_checkpoint(file)
    is_book = any(name.startswith("trf_blocks.") for name in weights)
    known = {} if is_book else _read_nanogpt_arguments(file, arguments)
    given = config.to_diff_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    if unknown := sorted(set(changes) - CONFIG_WORDS):
        raise ValueError(f"There is no config field {', '.join(unknown)}.")
    ours = _renamed(file, weights, BOOK_NAMES if is_book else NANOGPT_NAMES)
    ours.setdefault("lm_head.weight", ours["transformer.embed_tokens.weight"])
    told = {
        ScratchGPTConfig.attribute_map.get(name, name): value for name, value in {**known, **given, **changes}.items()
    }
    fields = {**told, **_read_shapes(ours)}  # what the tensors show wins over what was told
    if "num_attention_heads" not in fields:
        raise ValueError(
            f"{file.name} does not say how many attention heads it has, and no tensor shows it. Give "
            "import_checkpoint(..., num_attention_heads=N), or config= with the dict the model was made with."
        )
    model = ScratchGPTForCausalLM(
        ScratchGPTConfig(**{name: value for name, value in fields.items() if name in CONFIG_WORDS})
    )
    for name, tensor in model.state_dict().items():
        if name.endswith(".bias"):
            ours.setdefault(name, torch.zeros_like(tensor))
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"{file.name} does not hold a whole GPT: {' '.join(str(error).split())[:400]}") from error
    return model.eval()


def _open_checkpoint(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    # -> the state dict without torch.compile's prefix, and nanoGPT's arguments of the model
    if not file.is_file():
        raise ValueError(f"There is no file {file}.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own kinds
        raise ValueError(
            f"{file.name} cannot be opened as tensors alone: it is damaged, or a pickle of other objects, which can "
            "run code. Save the model's state_dict alone, and give that file."
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
        raise ValueError(f"{file.name} was made by another GPT than nanoGPT's: it has {', '.join(sorted(unknown))}.")
    known = {"hidden_act": "gelu", "drop_rate": arguments.get("dropout", 0.0)}
    return {**known, **{name: arguments[name] for name in ("n_head",) if name in arguments}}


def _renamed(file: Path, weights: dict[str, torch.Tensor], table: dict[str, str | None]) -> dict[str, torch.Tensor]:
    ours: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        matched = [(pattern, target) for pattern, target in table.items() if re.fullmatch(pattern, name)]
        if not matched:
            raise ValueError(
                f"{file.name} has a tensor {name!r}, which neither nanoGPT's GPT nor the book's GPTModel has. For a "
                "Hugging Face folder use from_pretrained."
            )
        pattern, target = matched[0]
        if target is None:
            continue
        target = re.sub(pattern, target, name)
        if ".attn.qkv." in target:  # (3D, D): query, key, value below each other
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                ours[target.replace(".qkv.", f".{part}_proj.")] = rows
        else:
            ours[target] = tensor
    if "transformer.embed_tokens.weight" not in ours or "transformer.embed_positions.weight" not in ours:
        raise ValueError(
            f"{file.name} holds no GPT of nanoGPT or of the book: it has no token and position embeddings."
        )
    return ours


def _read_shapes(ours: dict[str, torch.Tensor]) -> dict[str, Any]:
    tokens, head = ours["transformer.embed_tokens.weight"], ours["lm_head.weight"]
    layers = [int(name.split(".")[2]) for name in ours if name.startswith("transformer.layers.")]
    shape = {
        "vocab_size": tokens.shape[0],
        "hidden_size": tokens.shape[1],
        "max_position_embeddings": ours["transformer.embed_positions.weight"].shape[0],
        "num_hidden_layers": max(layers, default=-1) + 1,
        "attention_bias": "transformer.layers.0.attn.q_proj.bias" in ours,
        "tie_word_embeddings": torch.equal(tokens, head),
    }
    up = ours.get("transformer.layers.0.mlp.up_proj.weight")
    return shape if up is None else {**shape, "intermediate_size": up.shape[0]}


def load_model(
    name: str,
    revision: str | None = None,
    model_class: type[ModelT] = ScratchGPTForCausalLM,
    needs_head: bool = False,
    **changes: Any,
) -> ModelT:
    """A GPT-2 shaped model of a folder or the Hub in fp32, ready to be trained; `changes` are config fields.

    An adapter is merged into its base, and so is what a checkpoint of a LoRA run has learned until there. A
    classifier's head is new where there is none yet, with `needs_head` an error.

    Raises:
        ValueError: there is none, or it is something else.
    """

    def load(name: str, revision: str | None, **labels: Any) -> ModelT:
        if _lora_of(name) is not None:
            return _load_lora_checkpoint(name, model_class, changes)
        known = labels if issubclass(model_class, ScratchGPTForSequenceClassification) else {}
        fresh = {"score.weight"} if known or not needs_head else set()  # labels are an adapter's that has the head
        spare = set() if issubclass(model_class, ScratchGPTForCausalLM) else {"lm_head.weight"}
        found = _read_config(name, revision)
        heads = found.get("architectures") or []
        if not spare and any(str(head).endswith("ForSequenceClassification") for head in heads):
            raise ValueError(f"{name} is a classifier, and a language model is needed.")
        fields = with_fused_gelu(found, {**known, **changes})
        where = {"revision": revision, "dtype": torch.float32}
        return load_complete(model_class, name, may_lack=fresh, may_hold=spare, **where, **fields)

    return load_adapted(name, load, revision)


def needs_merging(name: str, revision: str | None = None) -> bool:
    """Whether a folder or Hub id holds LoRA apart from its base, so that only `load_model` loads it."""
    return _lora_of(name) is not None or find_adapter(name, revision) is not None


def _lora_of(name: str) -> dict[str, Any] | None:
    # The fields of the run with LoRA that a checkpoint is of; None for any other folder.
    try:
        fields = read_state(Path(name))["record"]["config"]
        return fields if fields["tune"] == "lora" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load_lora_checkpoint(name: str, model_class: type[ModelT], changes: dict[str, Any]) -> ModelT:
    # The model in which it was trained, made anew, with the checkpoint's weights; then merged.
    from .adapters import add_lora, merged_state

    found, lora = _read_config(name, None), _lora_of(name)
    if (kind := ", ".join(found.get("architectures") or [])) != model_class.__name__:
        raise ValueError(f"{name} is a checkpoint of a {kind}, and a {model_class.__name__} is needed.")
    with one_error(f"{name} cannot be loaded", explain):
        config = ScratchGPTConfig.from_dict({**found, **changes})
        if problem := find_damage(Path(name)):
            raise ValueError(f"{problem}.")
        tuned = model_class(config)
        add_lora(
            tuned,
            rank=lora["lora_rank"],
            alpha=lora["lora_alpha"],
            targets=lora["lora_targets"],
            use_rslora=lora["use_rslora"],
            use_dora=lora["use_dora"],
            quantize=None if lora["quantize_base"] == "no" else lora["quantize_base"],
        )
        check_shapes(Path(name), tuned)
        tuned.load_state_dict(load_file(str(Path(name) / WEIGHTS)), strict=False)  # tied tensors have one name
    model = model_class(config)
    model.load_state_dict(merged_state(tuned))
    return model.eval()


def _read_config(name: str, revision: str | None) -> dict[str, Any]:
    # The content of a config.json of ours or of GPT-2.
    with one_error(f"{name} cannot be loaded", explain):
        found, _ = ScratchGPTConfig.get_config_dict(name, revision=revision)
        if found.get("model_type") != ScratchGPTConfig.model_type:
            raise ValueError(f"it is a {found.get('model_type')}, and only GPT-2 shaped models are loaded here.")
    return found


def with_fused_gelu(found: Mapping[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """What training changes in a config that was found: GPT-2's gelu_new is the same function as one operation."""
    is_gelu_new = "gelu_new" in (found.get("activation_function"), found.get("hidden_act"))
    return {**changes, "hidden_act": "gelu_pytorch_tanh"} if is_gelu_new else changes


def fresh_head(model: ScratchGPTForSequenceClassification, names: Sequence[str], has_many: bool, seed: int) -> None:
    """Give a classifier a new head for the classes `names`, drawn by the seed, and their names to its config.

    With `has_many` each class is a question of its own.
    """
    config = model.config
    config.id2label, config.label2id = dict(enumerate(names)), {name: id for id, name in enumerate(names)}
    config.problem_type = "multi_label_classification" if has_many else "single_label_classification"
    model.num_labels = len(names)
    model.score = nn.Linear(config.hidden_size, len(names), bias=False)
    nn.init.normal_(model.score.weight, std=config.initializer_range, generator=torch.Generator().manual_seed(seed))


__all__ = [
    "export_gpt2",
    "fresh_head",
    "import_checkpoint",
    "load_any_head",
    "load_model",
    "needs_merging",
    "own_class",
    "refuse_what_gpt2_cannot_say",
    "with_fused_gelu",
]
