"""An adapter's folder -> its base with the adapter merged into it; a base -> what an adapter remembers of it.

Name and revision of a base stand in adapter_config.json, as peft has it; its shape and fingerprint in base.json.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..utils.foreign import one_error, read_json
from ..utils.loading import find_file
from .adapter_layout import from_gpt2


CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
FORMAT_VERSION = 1
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")


def find_adapter(name: str, revision: str | None = None) -> Path | None:
    """The adapter_config.json of a folder or Hub id, or None where that is a model of its own."""
    return find_file(name, CONFIG, revision)


def load_adapted(
    name: str, load: Callable[..., nn.Module], revision: str | None = None, above: tuple[Path, ...] = ()
) -> nn.Module:
    """The model of a folder or Hub id; of an adapter, its base with the adapter merged into it, ready to be trained.

    Args:
        load: (name, revision, id2label=..., label2id=...) -> a model of ours; labels are given where a classifier's
            adapter knows them.
        above: the adapter_config.json of each adapter on this one.

    Raises:
        ValueError: the adapter is damaged, or its base is not there or not the one that it was made on.
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
    try:
        model = load_adapted(base, lambda *where, **more: load(*where, **{**more, **labels}), config.revision, above)
    except ValueError as error:
        raise ValueError(f"The adapter {name} needs its base, {base}: {error}") from error
    _check_base(name, base, model, record)
    with one_error(f"The adapter {name} does not fit {base}"):
        model = _merge(model, config, state, needs_head=bool(labels))
    from transformers.utils.hub import extract_commit_hash

    model.config._commit_hash = extract_commit_hash(str(file), None)  # what it was loaded from is the adapter
    return model.requires_grad_(True)


def describe_base(model: nn.Module, base: str | None, revision: str | None) -> dict[str, Any]:
    """What base.json says: the layout of the base's own files ("gpt2" or ours), its shape, and `identify_base`."""
    file = None if base is None else find_file(base, "config.json", revision)
    return {
        "format_version": FORMAT_VERSION,
        "layout": read_json(file).get("model_type") if file else None,
        "shape": {name: getattr(model.config, name) for name in SHAPE},
        **identify_base(model, base),
    }


def identify_base(model: nn.Module, base: str | None) -> dict[str, str | None]:
    """What a run remembers of the model that it began with: its folder, None if it is of the Hub, and its fingerprint.

    The same name may be another model's on the Hub, or in another working folder.
    """
    on_meta = next(model.parameters()).is_meta
    folder = without_root(base) if base is not None and Path(base).is_dir() else None
    return {"folder": folder, "fingerprint": None if on_meta else fingerprint(model)}


def fingerprint(model: nn.Module) -> str:
    """A hash of up to 1,024 values of every weight below the head: another training, another fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.base_model.named_parameters()):
        values = tensor.detach().reshape(-1)
        values = values[:: max(1, len(values) // 1024)][:1024].float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def without_root(base: str | None) -> str | None:
    """A name as seen from the working folder: a record says nothing about this machine."""
    return os.path.relpath(base) if base is not None and Path(base).is_absolute() else base


def import_peft():
    """peft, or an ImportError that names the extra."""
    try:
        import peft
    except ImportError as error:
        raise ImportError('LoRA needs peft, which is an extra: pip install "scratch_gpt[lora]"') from error
    return peft


# --- Parts -------------------------------------------------------------------------------------------------------


def _read(name: str, file: Path, revision: str | None) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    # peft's config, the tensors in our names, and what base.json says (nothing where another trainer wrote the folder)
    peft = import_peft()
    weights, noted = find_file(name, WEIGHTS, revision), find_file(name, BASE, revision)
    if weights is None:
        raise ValueError(f"The adapter {name} has no {WEIGHTS}; only safetensors are read.")
    with one_error(f"The adapter {name} cannot be read"):
        config = peft.PeftConfig.from_pretrained(str(file.parent))
        state = load_file(str(weights))
        record = read_json(noted) if noted else {}
        _check_kinds(config, record)
        if config.peft_type != "LORA":
            raise ValueError(f"it is a {config.peft_type.value} adapter; only LoRA is known here.")
        state, changes = from_gpt2(
            {key.removeprefix("base_model.model."): value for key, value in state.items()}, config.to_dict()
        )
        vars(config).update(changes)
    return config, state, record


def _check_kinds(config: Any, record: dict[str, Any]) -> None:
    # The fields that are read before peft reads the rest.
    for field in ("base_model_name_or_path", "revision"):
        if not isinstance(getattr(config, field), str | None):
            raise ValueError(f"its {field} is {getattr(config, field)!r}; it has to be text.")
    labels = record.get("labels")
    if not isinstance(record.get("shape", {}), dict) or not isinstance(labels, list | None):
        raise ValueError(f"{BASE} has no shape or labels of the expected kind.")
    if not all(isinstance(label, str) for label in labels or ()):
        raise ValueError(f"the labels in {BASE} have to be text.")


def _merge(model: nn.Module, config: Any, state: dict[str, torch.Tensor], needs_head: bool) -> nn.Module:
    peft = import_peft()
    learned = {key: value for key, value in state.items() if ".lora_" in key}
    config.modules_to_save = None  # heads are put in their place here
    tuner = peft.LoraModel(model, config, "default")
    result = peft.set_peft_model_state_dict(tuner.model, learned)
    odd = [*result.unexpected_keys, *(key for key in result.missing_keys if ".lora_" in key)]
    if odd:
        raise ValueError(f"{odd[0]} is there without its place, or lacks.")
    model = tuner.merge_and_unload()
    own = dict(model.named_parameters())
    if needs_head and "score.weight" in own and "score.weight" not in state:
        raise ValueError("it names its labels but lacks score.weight.")
    for key in sorted(state.keys() - learned.keys()):
        if key in own and own[key].shape == state[key].shape:
            own[key].data.copy_(state[key])
        elif key in own:
            raise ValueError(f"its {key} has the shape {tuple(state[key].shape)}, not {tuple(own[key].shape)}.")
        elif not key.startswith("score."):  # a classifier's head has no place in a language model
            raise ValueError(f"it holds {key}, which this model does not have.")
    return model


def _check_base(name: str, base: str, model: nn.Module, record: dict[str, Any]) -> None:
    for field, there in record.get("shape", {}).items():
        here = getattr(model.config, field, None)
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


__all__ = [
    "BASE",
    "WEIGHTS",
    "describe_base",
    "find_adapter",
    "fingerprint",
    "identify_base",
    "import_peft",
    "load_adapted",
    "without_root",
]
