"""Load a model folder or Hub id strictly: safetensors only, no code from it, exactly the tensors of its config.

Without these checks transformers initializes missing tensors at random, skips unexpected tensors, and prompts on
standard input whether to run a folder's code.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .foreign import one_error, read_json, reason


ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
# transformers reads a folder with such a file as torch's distributed checkpoint, and then reports no extra tensors.
DISTRIBUTED = "shard-[0-9]*-model-*.safetensors"
SIZES = {  # fields of a config -> their largest value
    ("num_hidden_layers", "n_layer"): 10_000,
    ("hidden_size", "n_embd", "intermediate_size", "n_inner"): 2**22,
    ("vocab_size", "max_position_embeddings", "n_positions"): 2**26,
}


def load_complete(
    model_class: Any,
    name: str | Path,
    *,
    may_lack: Collection[str] = (),
    may_hold: Collection[str] = (),
    **options: Any,
) -> Any:
    """Load a model in eval mode, without adapters; its files must have exactly the tensors of its config.

    Buffers of old checkpoints that the class lists as obsolete, such as GPT-2's `attn.bias`, are skipped.

    Args:
        model_class: a model class or an Auto class.
        may_lack: tensors that may be missing or have another shape; they are initialized at random.
        may_hold: tensors that may be in the files although the model does not have them.
        options: for `from_pretrained`: revision, dtype, fields of the config.

    Raises:
        ValueError: the model does not exist, is damaged, is a pickle, needs its own code, has an index that points
            outside the folder or a size above the limits, or has tensors that are missing, unexpected, of another
            shape or not finite.
    """
    with one_error(f"{name} cannot be loaded", explain):
        _check_files(str(name), options.get("revision"))
        with _quiet():  # errors are raised from the report
            model, report = model_class.from_pretrained(
                str(name),
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # the report lists them
                output_loading_info=True,
                **options,
            )
        _check_report(f"a {type(model).__name__} with its config.json", report, {*may_lack}, {*may_hold})
        _check_ties(model)
        _check_finite(model)
    return model


def explain(error: BaseException) -> str:
    """Return in one line why loading failed, without advice that applies only to direct callers of transformers."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs its own Python code, which is never run here."
    if "use_safetensors" in text or "no file named" in text:
        return "it has no model.safetensors, and weights in other formats are not read."
    if "automatic conversion" in text:
        return "its tensors do not have the shapes that its config.json needs."
    return reason(error)


def find_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """Return the path of a file of a folder or Hub id; None if it does not exist."""
    flags = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_gated_repo")
    flags += ("_raise_exceptions_for_connection_errors",)
    try:
        path = cached_file(name, file, revision=revision, **dict.fromkeys(flags, False))
    except OSError:  # neither a folder nor an id; loading the model raises the error
        return None
    return None if path is None else Path(path)


# --- Checks ------------------------------------------------------------------------------------------------------


def _check_files(name: str, revision: str | None) -> None:
    if next(Path(name).glob(DISTRIBUTED), None) is not None:
        raise ValueError("it is a distributed checkpoint. Save it as model.safetensors.")
    if find_file(name, ADAPTER_CONFIG, revision) is not None:
        raise ValueError("it is an adapter. Merge it into its base, or give the base.")
    for index in _index_names(name, revision):
        file = find_file(name, index, revision)
        if file is not None:
            _check_index(file)


def _index_names(name: str, revision: str | None) -> Iterator[str]:
    yield INDEX
    file = find_file(name, "config.json", revision)
    config = read_json(file) if file else {}
    _check_sizes(config)
    index = config.get("transformers_weights")
    if isinstance(index, str) and index.endswith(".json"):  # then transformers reads this index instead
        yield index


def _check_sizes(config: dict[str, Any]) -> None:
    # Check before the model is built: an absurd size takes all memory, or building it never ends.
    for fields, limit in SIZES.items():
        for field in fields:
            if isinstance(config.get(field), (int, float)) and config[field] > limit:
                raise ValueError(f"its config.json has {field} {config[field]}; at most {limit:,} is allowed.")


def _check_index(file: Path) -> None:
    try:
        shards = {*read_json(file)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {file.name} is damaged.") from error
    for shard in shards:
        if not isinstance(shard, str) or re.match(r"[/\\]|[A-Za-z]:", shard) or ".." in re.split(r"[/\\]", shard):
            raise ValueError(f"its {file.name} names {shard}, which is outside the folder.")
        if not shard.endswith(".safetensors"):
            raise ValueError(f"its {file.name} names {shard}, which is not a safetensors file.")


def _check_report(kind: str, report: dict[str, Any], may_lack: set[str], may_hold: set[str]) -> None:
    if missing := {*report["missing_keys"]} - may_lack:
        raise ValueError(f"it lacks {_first(missing)}, which {kind} has.")
    if unexpected := {*report["unexpected_keys"]} - may_hold:
        raise ValueError(f"it holds {_first(unexpected)}, which {kind} does not have.")
    for key, stored_shape, expected_shape in sorted(report["mismatched_keys"]):
        if key not in may_lack:
            raise ValueError(
                f"its {key} has the shape {tuple(stored_shape)}, but its config.json needs {tuple(expected_shape)}."
            )


def _check_ties(model: Any) -> None:
    # If two tensors differ although the config ties them, transformers loads both, but saving or exporting keeps one.
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    for target in sorted(tied.keys() - model.all_tied_weights_keys.keys()):
        raise ValueError(
            f"its {target} differs from {tied[target]}, although its config.json ties the two. Write "
            '"tie_word_embeddings": false into config.json, or remove the tensor.'
        )


def _check_finite(model: Any) -> None:
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
            raise ValueError(f"its {name} has numbers that are not finite: the training that wrote it diverged.")


def _first(names: Iterable[str]) -> str:
    first, *remaining = sorted(names)
    return f"{first} (and {len(remaining)} more)" if remaining else first


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


__all__ = ["explain", "find_file", "load_complete"]
