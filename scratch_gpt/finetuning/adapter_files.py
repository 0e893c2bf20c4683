"""Load an adapter merged into its base, and describe a base for the adapters made on it.

adapter_config.json names the base and its revision, in peft's format; base.json holds its shape and fingerprint.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file
from torch import nn

from ..utils.foreign import one_error, read_json
from ..utils.loading import ADAPTER_CONFIG, find_file
from .adapter_layout import from_gpt2


ADAPTER_WEIGHTS, ADAPTER_BASE = "adapter_model.safetensors", "base.json"
ADAPTER_FORMAT = 1
ModuleT = TypeVar("ModuleT", bound=nn.Module)
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")


def find_adapter(name: str, revision: str | None = None) -> Path | None:
    """Return the adapter_config.json of a folder or Hub id, or None if it holds a complete model."""
    return find_file(name, ADAPTER_CONFIG, revision)


def load_adapted(
    name: str, load: Callable[..., ModuleT], revision: str | None = None, above: tuple[Path, ...] = ()
) -> ModuleT:
    """Load the model of a folder or Hub id, ready for training; an adapter is merged into its base.

    Args:
        load: (name, revision, id2label=..., label2id=...) -> a model of ours. It gets the labels if a classifier's
            adapter has them.
        above: the adapter_config.json of each adapter that is based on this one.

    Raises:
        ValueError: the adapter is damaged, or its base is missing or is not the one it was made on.
    """
    file = find_adapter(name, revision)
    if file is None:
        return load(name, revision)
    if file.resolve() in above:
        raise ValueError("it is its own base.")
    above = (*above, file.resolve())
    config, state, record = _read(name, file, revision)
    labels = _as_config(record.get("labels"))
    base = _find_base(name, file.parent, config.base_model_name_or_path)

    def load_labeled(name: str, revision: str | None, **options: Any) -> ModuleT:
        return load(name, revision, **{**options, **labels})

    try:
        model = load_adapted(base, load_labeled, config.revision, above)
    except ValueError as error:
        raise ValueError(f"The adapter {name} needs its base, {base}: {error}") from error
    _check_base(name, base, model, record)
    with one_error(f"The adapter {name} does not fit {base}"):
        model = _merge(model, config, state, needs_head=bool(labels))
    from transformers.utils.hub import extract_commit_hash

    cast(Any, model.config)._commit_hash = extract_commit_hash(str(file), None)  # of the adapter, not of its base
    return model.requires_grad_(True)


def describe_base(model: nn.Module, base: str | None, revision: str | None) -> dict[str, Any]:
    """Return the content of base.json: the layout of the base's files ("gpt2" or ours), its shape, `identify_base`."""
    file = None if base is None else find_file(base, "config.json", revision)
    return {
        "format_version": ADAPTER_FORMAT,
        "layout": read_json(file).get("model_type") if file else None,
        "shape": {name: getattr(model.config, name) for name in SHAPE},
        **identify_base(model, base),
    }


def identify_base(model: nn.Module, base: str | None) -> dict[str, str | None]:
    """Return the folder (None if on the Hub) and the fingerprint of the model that a run starts from.

    The same name may mean another model on the Hub, or in another working folder.
    """
    on_meta = next(model.parameters()).is_meta
    folder = without_root(base) if base is not None and Path(base).is_dir() else None
    return {"folder": folder, "fingerprint": None if on_meta else weights_fingerprint(model)}


def weights_fingerprint(model: nn.Module) -> str:
    """Hash up to 1,024 values of every weight except the head's, so that other weights give another fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(cast(nn.Module, model.base_model).named_parameters()):
        values = tensor.detach().reshape(-1)
        values = values[:: max(1, len(values) // 1024)][:1024].float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def without_root(base: str | None) -> str | None:
    """Return an absolute path relative to the working folder, so that a record does not identify this machine."""
    return os.path.relpath(base) if base is not None and Path(base).is_absolute() else base


def import_peft() -> ModuleType:
    """Import peft, or raise an ImportError that names the extra."""
    # At its import bitsandbytes warns that an optional kernel is not installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise ImportError('LoRA needs peft, which is an extra: pip install "scratch_gpt[lora]"') from error
    return peft


# --- Parts -------------------------------------------------------------------------------------------------------


def _read(name: str, file: Path, revision: str | None) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    # Return peft's config, the tensors under our names, and base.json (empty if another trainer wrote the folder).
    peft = import_peft()
    weights, base_file = find_file(name, ADAPTER_WEIGHTS, revision), find_file(name, ADAPTER_BASE, revision)
    if weights is None:
        raise ValueError(f"The adapter {name} has no {ADAPTER_WEIGHTS}; only safetensors are read.")
    with one_error(f"The adapter {name} cannot be read"):
        config: Any = peft.PeftConfig.from_pretrained(str(file.parent))
        state = load_file(str(weights))
        record = read_json(base_file) if base_file else {}
        _check_kinds(config, record)
        if config.peft_type != "LORA":
            raise ValueError(f"it is a {config.peft_type.value} adapter; only LoRA is supported.")
        state, changes = from_gpt2(
            {key.removeprefix("base_model.model."): value for key, value in state.items()}, config.to_dict()
        )
        vars(config).update(changes)
    return config, state, record


def _check_kinds(config: Any, record: dict[str, Any]) -> None:
    # Check the fields that are read before peft reads the others.
    for field in ("base_model_name_or_path", "revision"):
        if not isinstance(getattr(config, field), str | None):
            raise ValueError(f"its {field} is {getattr(config, field)!r}; it must be text.")
    labels = record.get("labels")
    if not isinstance(record.get("shape", {}), dict) or not isinstance(labels, list | None):
        raise ValueError(f"{ADAPTER_BASE} has no shape or labels of the expected type.")
    if not all(isinstance(label, str) for label in labels or ()):
        raise ValueError(f"the labels in {ADAPTER_BASE} must be text.")


def _merge(model: ModuleT, config: Any, state: dict[str, torch.Tensor], needs_head: bool) -> ModuleT:
    peft = import_peft()
    learned = {key: value for key, value in state.items() if ".lora_" in key}
    config.modules_to_save = None  # heads are copied below
    tuner = peft.LoraModel(model, config, "default")
    result = peft.set_peft_model_state_dict(tuner.model, learned)
    mismatched = [*result.unexpected_keys, *(key for key in result.missing_keys if ".lora_" in key)]
    if mismatched:
        raise ValueError(f"{mismatched[0]} is missing, or the model has no place for it.")
    model = tuner.merge_and_unload()
    parameters = dict(model.named_parameters())
    if needs_head and "score.weight" in parameters and "score.weight" not in state:
        raise ValueError("it has labels but no score.weight.")
    for key in sorted(state.keys() - learned.keys()):
        if key in parameters and parameters[key].shape == state[key].shape:
            parameters[key].data.copy_(state[key])
        elif key in parameters:
            raise ValueError(f"its {key} has the shape {tuple(state[key].shape)}, not {tuple(parameters[key].shape)}.")
        elif not key.startswith("score."):  # a language model has no classifier's head
            raise ValueError(f"it holds {key}, which this model does not have.")
    return model


def _check_base(name: str, base: str, model: nn.Module, record: dict[str, Any]) -> None:
    for field, expected in record.get("shape", {}).items():
        value = getattr(model.config, field, None)
        if value != expected:
            raise ValueError(
                f"The adapter {name} was made on a base of {field} {expected}, but {base} has {value}. Give the "
                f"adapter with its own base, named in {ADAPTER_CONFIG}."
            )
    if record.get("fingerprint") not in (None, weights_fingerprint(model)):
        raise ValueError(
            f"The adapter {name} was made on other weights than those that {base} has now: the fingerprint differs. "
            f"Restore the base that {ADAPTER_CONFIG} names, or train the adapter again."
        )


def _as_config(labels: list[str] | None) -> dict[str, Any]:
    id2label = dict(enumerate(labels or []))
    return {"id2label": id2label, "label2id": {label: n for n, label in id2label.items()}} if id2label else {}


def _find_base(name: str, folder: Path, base: str | None) -> str:
    # Resolve a relative path against the working folder, as peft does, else against the adapter's folder.
    if base is None:
        raise ValueError(f"The adapter {name} names no base: write base_model_name_or_path into its {ADAPTER_CONFIG}.")
    local = next((path for path in (Path(base), folder / base) if path.is_dir()), None)
    return base if local is None else str(local)


__all__ = [
    "ADAPTER_BASE",
    "ADAPTER_WEIGHTS",
    "describe_base",
    "find_adapter",
    "identify_base",
    "import_peft",
    "load_adapted",
    "weights_fingerprint",
    "without_root",
]
