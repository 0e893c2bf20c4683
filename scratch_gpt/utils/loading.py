"""Load a model folder or Hub id strictly: safetensors only, none of its code, exactly the tensors its config asks for.

transformers by itself draws missing tensors at random, skips tensors it does not expect, and asks on standard input
whether to run a folder's code.
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
# transformers reads a folder with such a file through torch's distributed checkpoints, which report no extra tensors.
DISTRIBUTED = "shard-[0-9]*-model-*.safetensors"
SIZES = {  # fields of a config -> the most that they may be
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
    """Load a model in eval mode, without adapters; its files hold exactly the tensors of its config.

    (Buffers of old checkpoints that the class itself lists as obsolete, such as GPT-2's `attn.bias`, are skipped.)

    Args:
        model_class: a model class or an Auto class.
        may_lack: tensors that may be missing or have another shape; they are initialized at random.
        may_hold: tensors that may be there although the model has no place for them.
        options: for `from_pretrained`: revision, dtype, fields of the config.

    Raises:
        ValueError: no such model, a damaged file, a pickle, a model that needs its own code, an index that points
            outside the folder, an absurd size, or tensors that are missing, unexpected, of another shape, not finite.
    """
    with one_error(f"{name} cannot be loaded", explain):
        _check_files(str(name), options.get("revision"))
        with _quiet():  # the report below is the error
            model, report = model_class.from_pretrained(
                str(name),
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
                **options,
            )
        _check_report(f"a {type(model).__name__} with its config.json", report, {*may_lack}, {*may_hold})
        _check_ties(model)
        _check_finite(model)
    return model


def explain(error: BaseException) -> str:
    """Say in one line why loading failed, without the advice that only a caller of transformers can take."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs Python code of its own, which is never run here."
    if "use_safetensors" in text or "no file named" in text:
        return "it has no model.safetensors, and weights in other formats are not read."
    if "automatic conversion" in text:
        return "its tensors do not have the shapes that its config.json asks for."
    return reason(error)


def find_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """Return the path of a file of a folder or Hub id; None if there is none."""
    flags = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_gated_repo")
    flags += ("_raise_exceptions_for_connection_errors",)
    try:
        path = cached_file(name, file, revision=revision, **dict.fromkeys(flags, False))
    except OSError:  # neither a folder nor an id: loading the model reports it
        return None
    return None if path is None else Path(path)


# --- Checks ------------------------------------------------------------------------------------------------------


def _check_files(name: str, revision: str | None) -> None:
    if next(Path(name).glob(DISTRIBUTED), None) is not None:
        raise ValueError("it is a distributed checkpoint. Save it as model.safetensors.")
    if find_file(name, ADAPTER_CONFIG, revision) is not None:
        raise ValueError("it holds an adapter. Merge the adapter into its base, or give the base.")
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
    if isinstance(index, str) and index.endswith(".json"):  # transformers then reads this index instead
        yield index


def _check_sizes(config: dict[str, Any]) -> None:
    # Before a model is built, which for an absurd size takes all memory, or has no end.
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
                f"its {key} has the shape {tuple(stored_shape)}, and its config.json asks for {tuple(expected_shape)}."
            )


def _check_ties(model: Any) -> None:
    # Of two different tensors that the config ties, transformers keeps both; whoever saves or exports keeps one.
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    for target in sorted(tied.keys() - model.all_tied_weights_keys.keys()):
        raise ValueError(
            f"it holds a {target} that differs from {tied[target]}, although its config.json ties the two. Write "
            '"tie_word_embeddings": false into config.json, or take the tensor out.'
        )


def _check_finite(model: Any) -> None:
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
            raise ValueError(f"its {name} holds numbers that are not finite: the training that wrote it has diverged.")


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
