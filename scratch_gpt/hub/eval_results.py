"""Write the results of public tasks as the Hub reads them from a model's repository: .eval_results/*.yaml.

Format: https://huggingface.co/docs/hub/eval-results. The Hub shows the results on datasets that are registered as
benchmarks, on the model's page and on the benchmark's leaderboard.
"""

from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ..runs.record import Record, Result, is_hub_id, results


METRIC = "acc"  # the value of a task; the card has the others


def eval_results(record: Record) -> str | None:
    """Return the content of .eval_results/scratch_gpt.yaml; None without results of a public task."""
    entries = []
    for result in results(record):
        task = task_of(record, result.split)
        if task is not None and result.metric == METRIC:
            name = task["dataset"].get("config") or "default"
            entries.append(EvalResultEntry(task["dataset"]["id"], name, result.value, notes=_notes(task, result)))
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False) if entries else None


def task_of(record: Record, split: str) -> dict[str, Any] | None:
    """Return the protocol of a result if it is of a public task with a dataset on the Hub."""
    protocol = protocol_of(record, split)
    dataset = protocol.get("dataset")
    identity = dataset.get("id") if isinstance(dataset, dict) else None
    return protocol if isinstance(identity, str) and is_hub_id(identity) else None


def protocol_of(record: Record, split: str) -> dict[str, Any]:
    """Return how a set was measured; empty if evaluation.json does not say."""
    protocol = record.evaluation.get("protocol", {}).get(split)
    return protocol if isinstance(protocol, dict) else {}


def _notes(task: dict[str, Any], result: Result) -> str:
    seeds = "" if result.std is None else f"; mean of {result.n} seeds, standard deviation {result.std:g}"
    return f"accuracy of lm_eval's {result.split}, {task.get('few_shot')}-shot, {task.get('rows')} rows{seeds}"


__all__ = ["eval_results", "protocol_of", "task_of"]
