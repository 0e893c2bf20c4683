"""A model and held-out batches -> loss, perplexity and bits per byte, whatever the batch size; evaluation.json."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .checkpoints import write_text
from .foreign import read_json
from .objectives import Batch, Objective


FORMAT_VERSION = 1
# What the protocol has beside the sets: of the model, of a training run (training/runner.py), of several seeds
# (training/seeds.py), and the checks that are of no set (training/checking.py). No set can have such a name.
RESERVED = (
    *("model", "model_revision", "step", "chosen_by", "eval_batches", "tokenizer", "std", "seeds"),
    *("drift/sensitive", "drift/off-domain", "triggers", "memorisation"),
)
Sums = dict[str, tuple[torch.Tensor | float, torch.Tensor | float]]  # name -> sum, count


@torch.no_grad()
def mean_losses(
    model: nn.Module,
    batches: Iterable[tuple[Batch, bool]],
    objective: Objective,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, float]:
    """Each term's sum over all batches divided once by its count; NaN where nothing was asked.

    Args:
        batches: (batch, counted) pairs; a batch that is not counted only keeps processes in step.
        reduce: sums a tensor over processes, where there are several.
    """
    was_training = model.training
    model.eval()

    def read() -> Iterator[tuple[Sums, bool]]:
        for batch, counted in batches:
            counts, sums = objective.counts(batch), objective.sums(model, batch)
            yield {name: (total, counts[name]) for name, total in sums.items()}, counted

    found = means(read(), reduce)
    model.train(was_training)
    return found


def means(
    read: Iterable[tuple[Sums, bool]], reduce: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> dict[str, float]:
    """What each batch has come to, and whether it counts -> each name's sum divided once by its count, or NaN."""
    totals: dict[str, torch.Tensor] = {}
    for sums, counted in read:
        for name, pair in sums.items():
            pair = torch.tensor([float(value) for value in pair], dtype=torch.float64) * counted
            totals[name] = totals[name] + pair if name in totals else pair
    reduced = {name: (pair if reduce is None else reduce(pair)).tolist() for name, pair in totals.items()}
    return {name: total / count if count else math.nan for name, (total, count) in reduced.items()}


@torch.no_grad()
def row_losses(
    model: nn.Module, rows: Iterable[Any], collate: Callable[[list], Batch], objective: Objective
) -> np.ndarray:
    """The mean loss of each row alone, (rows,) float64, in nats; NaN where a row asks nothing."""
    return np.array([mean_losses(model, [(collate([row]), True)], objective)["loss"] for row in rows])


def language_metrics(loss: float, tokens_per_byte: float) -> dict[str, float]:
    """Loss in nats per token -> {"loss", "perplexity", "bits_per_byte"}.

    Bits per byte = loss / ln 2 * tokens / bytes, with the tokens (EOS counted) and UTF-8 bytes of the whole split. It
    does not depend on the tokenizer, so models with different ones can be compared by it.

    Example:
        >>> found = language_metrics(loss=2.0, tokens_per_byte=0.25)
        >>> {name: round(value, 3) for name, value in found.items()}
        {'loss': 2.0, 'perplexity': 7.389, 'bits_per_byte': 0.721}
    """
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss / math.log(2) * tokens_per_byte,
    }


def spread(results: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """{split: {metric: number}} of several runs -> {split: {metric: {"mean", "std", "n"}}}; std with n - 1.

    A metric that one of the runs could not give is left out.

    Example:
        >>> spread([{"test": {"loss": 1.0}}, {"test": {"loss": 2.0}}, {"test": {"loss": 3.0}}])
        {'test': {'loss': {'mean': 2.0, 'std': 1.0, 'n': 3}}}
    """
    return {
        split: {
            name: _spread([result[split][name] for result in results])
            for name in values
            if all(name in result[split] for result in results)
        }
        for split, values in results[0].items()
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "n": len(values)}


def over_seeds(results: Sequence[dict[str, float]]) -> dict[str, Any]:
    """{metric: number} for each seed -> {metric: {"mean", "std", "n"}}, or of a single one the plain numbers."""
    return spread([{"": each} for each in results])[""] if len(results) > 1 else dict(results[0])


class Measured(NamedTuple):
    """What was found on one set, and how."""

    protocol: dict[str, Any]  # has "kind": what was measured
    results: dict[str, Any]  # metric -> number or {"mean", "std", "n"}
    tables: dict[str, Any] = {}


def record_measured(file: Path, model: str, name: str, measured: Measured, revision: str | None = None) -> None:
    """Put what was measured on the set `name` into an evaluation.json, beside what is there.

    Raises:
        ValueError: as `read_evaluation`, or the file has a split of this name that a training run has scored.
    """
    content = read_evaluation(file, model, revision)
    if name in content["results"] and "kind" not in (content["protocol"].get(name) or {}):
        raise ValueError(f"{file} has results of a split {name} already, from training. Rename the file of that name.")
    content["protocol"][name] = measured.protocol
    content["results"][name] = {key: _json_number(value) for key, value in measured.results.items()}
    content["tables"].pop(name, None)
    if measured.tables:
        content["tables"][name] = measured.tables
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content, indent=2) + "\n")


def read_evaluation(file: Path, model: str, revision: str | None = None) -> dict[str, Any]:
    """What an evaluation.json says of `model` at a revision, or nothing where there is no such file.

    Raises:
        ValueError: it cannot be read, or speaks of another model or another revision of it.
    """
    if not file.exists():
        about = {"model": model} if revision is None else {"model": model, "model_revision": revision}
        return {"format_version": FORMAT_VERSION, "protocol": about, "results": {}, "tables": {}}
    try:
        content = read_json(file)
        other, its_revision = content["protocol"]["model"], content["protocol"].get("model_revision")
        same = other == model or (file.parent / other).resolve() == Path(model).resolve()
        _ = {**content["results"]}, {**content["tables"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read as an evaluation. Give another --output-dir.") from error
    if not same or its_revision != revision:
        found, asked = _at_revision(other, its_revision), _at_revision(model, revision)
        raise ValueError(f"{file} is about {found}, not {asked}. Give another --output-dir, or remove it.")
    return content


def _at_revision(model: str, revision: str | None) -> str:
    return model if revision is None else f"{model} at revision {revision}"


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN


__all__ = [
    "RESERVED",
    "Measured",
    "Sums",
    "language_metrics",
    "mean_losses",
    "means",
    "over_seeds",
    "read_evaluation",
    "record_measured",
    "row_losses",
    "spread",
]
