"""Read and write evaluation.json, the measurements of a run."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.files import write_text
from ..utils.foreign import read_json


EVALUATION_FORMAT = 1
# Entries of the protocol that are not sets, so no set can have these names: of the model, of a training run
# (run/results.py in training/support), of several seeds (run/seeds.py), and of checks without a set
# (evaluation/safety.py).
RESERVED = (
    "model",
    "model_revision",
    "step",
    "chosen_by",
    "eval_batches",
    "tokenizer",
    "std",
    "seeds",
    "drift/sensitive",
    "drift/off-domain",
    "triggers",
    "memorization",
    "memorisation",  # of earlier versions
)


class Measured(NamedTuple):
    """The results of one set, and the protocol of their measurement."""

    protocol: dict[str, Any]  # has "kind", the kind of measurement
    results: dict[str, Any]  # metric -> number or {"mean", "std", "n"}
    tables: dict[str, Any] = {}


def record_measured(file: Path, model: str, name: str, measured: Measured, revision: str | None = None) -> None:
    """Add the measurements of the set `name` to an evaluation.json; its other sets are kept.

    Raises:
        ValueError: as in `read_evaluation`, or a training run has scored a split of this name.
    """
    content = read_evaluation(file, model, revision)
    if name in content["results"] and "kind" not in (content["protocol"].get(name) or {}):
        raise ValueError(
            f"{file} already has results of a split {name} from training. Rename the data file of the set."
        )
    content["protocol"][name] = measured.protocol
    content["results"][name] = {key: _json_number(value) for key, value in measured.results.items()}
    content["tables"].pop(name, None)
    if measured.tables:
        content["tables"][name] = measured.tables
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content, indent=2) + "\n")


def read_evaluation(file: Path, model: str, revision: str | None = None) -> dict[str, Any]:
    """Return the content of an evaluation.json of `model` at a revision; without results if the file is missing.

    Raises:
        ValueError: the file cannot be read, or belongs to another model or another revision.
    """
    if not file.exists():
        about = {"model": model} if revision is None else {"model": model, "model_revision": revision}
        return {"format_version": EVALUATION_FORMAT, "protocol": about, "results": {}, "tables": {}}
    try:
        content = read_json(file)
        file_model, file_revision = content["protocol"]["model"], content["protocol"].get("model_revision")
        is_same_model = file_model == model or (file.parent / file_model).resolve() == Path(model).resolve()
        _ = {**content["results"]}, {**content["tables"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a valid evaluation file. Give another output_dir.") from error
    if not is_same_model or file_revision != revision:
        recorded_model, requested_model = _at_revision(file_model, file_revision), _at_revision(model, revision)
        raise ValueError(
            f"{file} belongs to {recorded_model}, not {requested_model}. Give another output_dir, or remove the file."
        )
    return content


def _at_revision(model: str, revision: str | None) -> str:
    return model if revision is None else f"{model} at revision {revision}"


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN


__all__ = ["RESERVED", "Measured", "read_evaluation", "record_measured"]
