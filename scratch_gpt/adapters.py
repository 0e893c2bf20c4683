"""A base model -> one of which little is trained: LoRA (peft), or some parts of its own; and back to one folder.

LoRA (Hu et al. 2021) leaves a matrix W as it is and learns W + scale * B A, with A (r, in) and B (out, r). Here the
layers are put into the model itself, so that it stays what it is to the loop; a saved adapter is peft's own format.
An adapter remembers its base: name and revision in adapter_config.json, shape and fingerprint in base.json.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
FORMAT_VERSION = 1
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
# Where LoRA goes, in our names and in stock GPT-2's (one c_attn is our q, k and v).
TARGETS = {
    "default": (("q_proj", "k_proj", "v_proj"), ("c_attn",)),
    "attention": (("q_proj", "k_proj", "v_proj", "o_proj"), ("c_attn", "attn.c_proj")),
    "all-linear": (("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"), ("c_attn", "c_fc", "c_proj")),
}
# peft's initialisations that need neither data nor quantisation. The last two move the base's weights.
INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")


# --- What is trained ---------------------------------------------------------------------------------------------


def freeze(model: nn.Module, tune: str) -> list[str]:
    """Leave exactly what `tune` names trainable: full, last-block, last-N-blocks (with final norm and head) or head.

    Returns:
        What a user has to be told.

    Raises:
        ValueError: another word, more blocks than there are, or the head of a model whose head is its embedding.
    """
    found = re.fullmatch(r"full|head|last-(?:block|([1-9]\d*)-blocks)", tune)
    if found is None:
        raise ValueError(f"tune is {tune!r}; it is full, last-block, last-N-blocks, head or lora.")
    model.requires_grad_(tune == "full")
    if tune == "full":
        return []
    trunk, name = model.base_model, _head_name(model)
    tied = name is None or model.get_parameter(f"{name}.weight") is model.get_input_embeddings().weight
    if tune == "head" and tied:
        raise ValueError("tune is head, but this model's head is its token embedding. Give last-block, full or lora.")
    if not tied:
        model.get_submodule(name).requires_grad_(True)
    if tune == "head":
        return []
    blocks, norm = (trunk.layers, trunk.norm) if hasattr(trunk, "layers") else (trunk.h, trunk.ln_f)
    count = int(found[1] or 1)
    if count > len(blocks):
        raise ValueError(f"tune is {tune}, but the model has {len(blocks)} blocks. Give fewer, or full.")
    for part in (*blocks[-count:], norm):
        part.requires_grad_(True)
    return [f"{tune}: this model's head is its token embedding, which stays as it is."] if tied else []


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
) -> None:
    """Put LoRA into a model of ours or stock GPT-2, in place; nothing else stays trainable but a classifier's head.

    The head is trained whole, except under `all-linear`, where it has LoRA like every other linear layer (the book's
    count, Raschka 2024, appendix E: 2,666,528 parameters of GPT-2 at rank 16 and two classes).

    Args:
        base: folder or Hub id that the model was loaded from, at `revision`: an adapter is saved with them.
        alpha: what is learned is scaled by alpha / rank, with `use_rslora` by alpha / sqrt(rank) (Kalajdzievski 2023).
        targets: a key of TARGETS.
        init: one of INITS; but for the last two, nothing changes before the first step.
        use_dora: learn each row's length apart from its direction (Liu et al. 2024).

    Raises:
        ValueError: one of these is none that there is.
        ImportError: peft is not installed.
    """
    if targets not in TARGETS:
        raise ValueError(f"lora_targets is {targets!r}; it is one of {', '.join(TARGETS)}.")
    if init not in INITS:
        raise ValueError(f"lora_init is {init!r}; it is one of {', '.join(INITS)}.")
    peft = _import_peft()
    stock = hasattr(model.base_model, "h")
    head = _classifier(model)
    names = [*TARGETS[targets][stock], *([head] if head and targets == "all-linear" else [])]
    record = {"format_version": FORMAT_VERSION, **_describe_base(model)}
    if head:
        record["labels"] = list(model.config.id2label.values())
    config = peft.LoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        base_model_name_or_path=_without_root(base),
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
    peft.inject_adapter_in_model(config, model)
    if head and head not in names:
        model.get_submodule(head).requires_grad_(True)
    model.adapter_base = record


def has_lora(model: nn.Module) -> bool:
    """Whether `add_lora` was here."""
    return hasattr(model, "adapter_base")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are; tied ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def trainable_line(model: nn.Module) -> str:
    """`Trained: 2,666,528 of 127,106,336 parameters (2.10 %)`."""
    trained, total = count_parameters(model)
    return f"Trained: {trained:,} of {total:,} parameters ({trained / total:.2%})".replace("%", " %")


# --- Out ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of the standalone model, W + scale * B A in place of each W; the model stays as it is."""
    layers = dict(_lora_layers(model))
    state = {}
    for name, tensor in model.state_dict().items():
        owner = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if owner is None:
            state[name] = tensor
        elif ".base_layer." in name:
            state[name.replace(".base_layer.", ".")] = tensor
    for name, layer in layers.items():
        state[f"{name}.weight"] = _merged_weight(layer)
    return state


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Write what LoRA has learned, with a classifier's whole head, as peft reads it: a few MB beside its base."""
    peft = _import_peft()
    config = copy.copy(model.peft_config["default"])
    tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    head = _classifier(model)
    if head:
        # peft keeps a head whole and its place free of LoRA: what LoRA has learned there is merged into it.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{head}.")}
        tensors[f"{head}.weight"] = _merged_weight(model.get_submodule(head))
        config.modules_to_save = [head]
    config.target_modules = sorted(set(config.target_modules) - {head})
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    content = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(content, str(folder / WEIGHTS), metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    (folder / BASE).write_text(json.dumps(model.adapter_base, indent=2) + "\n")


# --- In ----------------------------------------------------------------------------------------------------------


def find_adapter(name: str, revision: str | None = None) -> Path | None:
    """The adapter_config.json of a folder or Hub id, or None where that is a model of its own."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if Path(name).is_dir():
        return Path(name) / CONFIG if (Path(name) / CONFIG).exists() else None
    found = find_adapter_config_file(name, revision=revision)
    return None if found is None else Path(found)


def load_adapted(name: str, load: Callable[..., nn.Module], revision: str | None = None) -> nn.Module:
    """The model of a folder or Hub id; of an adapter, its base with the adapter merged into it, ready to be trained.

    Args:
        load: (name, revision, id2label=..., label2id=...) -> a model; labels are given where a classifier's adapter
            knows them.

    Raises:
        ValueError: the base is not there, or is not the one that the adapter was made on.
    """
    file = find_adapter(name, revision)
    if file is None:
        return load(name, revision)
    peft = _import_peft()
    folder = file.parent
    config = peft.PeftConfig.from_pretrained(str(folder))
    if config.peft_type != "LORA":
        raise ValueError(f"The adapter {name} is a {config.peft_type.value} adapter; only LoRA is known here.")
    record = json.loads((folder / BASE).read_text()) if (folder / BASE).exists() else {}
    labels = _as_config(record.get("labels"))
    base = _find_base(name, folder, config.base_model_name_or_path)
    model = load_adapted(base, lambda *where, **more: load(*where, **{**labels, **more}), config.revision)
    _check_base(name, base, model, record)
    state = {key.removeprefix("base_model.model."): value for key, value in load_file(str(folder / WEIGHTS)).items()}
    learned = {key: value for key, value in state.items() if ".lora_" in key}
    config.modules_to_save = None  # a head is put in its place here
    try:
        tuner = peft.LoraModel(model, config, "default")
        peft.set_peft_model_state_dict(tuner.model, learned)
        model = tuner.merge_and_unload()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"The adapter {name} does not fit {base}: {' '.join(str(error).split())[:200]}") from error
    own = dict(model.named_parameters())
    with torch.no_grad():
        for key in state.keys() - learned.keys() & own.keys():
            own[key].copy_(state[key])
    model.config._commit_hash = revision  # what it was loaded from is the adapter
    return model.requires_grad_(True)


# --- Parts -------------------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> str:
    """A hash of up to 1,024 values of every weight below the head: another training, another fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.base_model.named_parameters()):
        values = tensor.detach().reshape(-1)
        values = values[:: max(1, len(values) // 1024)][:1024].float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def _describe_base(model: nn.Module) -> dict[str, Any]:
    on_meta = next(model.parameters()).is_meta
    return {
        "shape": {name: getattr(model.config, name) for name in SHAPE},
        "fingerprint": None if on_meta else fingerprint(model),
    }


def _check_base(name: str, base: str, model: nn.Module, record: dict[str, Any]) -> None:
    for field, there in record.get("shape", {}).items():
        here = getattr(model.config, field)
        if here != there:
            raise ValueError(
                f"The adapter {name} was made on a base of {field} {there}, but {base} has {here}. Give the adapter "
                f"with its own base, named in {CONFIG}."
            )
    if record.get("fingerprint") not in (None, fingerprint(model)):
        raise ValueError(
            f"The adapter {name} was made on other weights than those of {base} now: its base has another "
            f"fingerprint. Put back the base that {CONFIG} names, or train the adapter anew."
        )


def _as_config(labels: list[str] | None) -> dict[str, Any]:
    known = dict(enumerate(labels or []))
    return {"id2label": known, "label2id": {label: n for n, label in known.items()}} if known else {}


def _find_base(name: str, folder: Path, base: str | None) -> str:
    # A relative path is seen from the working folder, as peft does, or else from the adapter's own.
    if base is None:
        raise ValueError(f"The adapter {name} names no base: write base_model_name_or_path into its {CONFIG}.")
    found = next((place for place in (Path(base), folder / base) if place.is_dir()), None)
    return base if found is None else str(found)


def _without_root(base: str | None) -> str | None:
    return os.path.relpath(base) if base is not None and Path(base).is_absolute() else base


def _head_name(model: nn.Module) -> str | None:
    return next((name for name in ("score", "lm_head") if hasattr(model, name)), None)


def _classifier(model: nn.Module) -> str:
    return "score" if hasattr(model, "score") else ""


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def _merged_weight(layer: nn.Module) -> torch.Tensor:
    if not hasattr(layer, "lora_A"):
        return layer.weight
    merged = copy.deepcopy(layer)
    merged.merge()
    return merged.get_base_layer().weight.detach()


def _import_peft():
    try:
        import peft
    except ImportError as error:
        raise ImportError('LoRA needs peft, which is an extra: pip install -e ".[lora]"') from error
    return peft


__all__ = [
    "INITS",
    "TARGETS",
    "add_lora",
    "count_parameters",
    "find_adapter",
    "fingerprint",
    "freeze",
    "has_lora",
    "load_adapted",
    "merged_state",
    "save_adapter",
    "trainable_line",
]
