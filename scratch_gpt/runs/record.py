"""Read the files of a run folder for its card and for publishing; write run.yaml."""

import csv
import math
import re
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml

from ..utils.files import write_text
from ..utils.foreign import check_regular, one_error, read_json
from .folder import EVALUATION, METRICS, RUN_YAML, read_metrics


FACTS = ("steps", "schedule", "processes", "threads")  # notes of run.yaml that each run has
FIELD_TYPES = {  # field of a record -> (its type, the type of its values or items)
    "architectures": (list, str),
    "id2label": (dict, str),
    "sources": (list, dict),
    "splits": (dict, dict),
    "filters": (dict, dict),
    "protocol": (dict, object),
    "results": (dict, dict),
    "tables": (dict, object),
}
PUBLISHED, PUBLISHED_FOLDER = "hub.json", "published"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# The parts of a run folder that are read or replaced: these folders with all their files, and these files.
FOLDERS = ("model", "adapter", "checkpoints", "tracking", PUBLISHED_FOLDER)
RECORD_FILES = (RUN_YAML, "manifest.json", EVALUATION, METRICS, "emissions.csv", PUBLISHED)


class Record(NamedTuple):
    """The content of a run folder. With several seeds, the results are of all and everything else is of the first."""

    folder: Path  # with several seeds that of the first; a LoRA run has adapter/ in it
    run: dict[str, Any]  # the fields of run.yaml
    facts: dict[str, Any]  # its notes: steps, schedule, parameters, device, versions, ...
    config: dict[str, Any]  # of the model
    manifest: dict[str, Any]  # of the data
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]]
    emissions: list[dict[str, str]]  # codecarbon's rows, one for each launch
    has_chat_template: bool

    @property
    def kind(self) -> str:
        """Return "base", "classifier" or "chat"."""
        if any(name.endswith("ForSequenceClassification") for name in self.config.get("architectures") or []):
            return "classifier"
        is_taught = self.manifest.get("task", "pretrain") != "pretrain"
        return "chat" if is_taught and self.has_chat_template else "base"

    @property
    def labels(self) -> list[str]:
        """Return the classes of a classifier."""
        names = self.config.get("id2label") or {}
        return [names[id] for id in sorted(names, key=int)] if self.kind == "classifier" else []


class Result(NamedTuple):
    """One number of the evaluation; `std` is over `n` seeds, None for a single seed."""

    split: str
    metric: str
    value: float
    std: float | None = None
    n: int = 1
    before: float | None = None  # the same metric before the first step

    def __str__(self) -> str:
        return f"{self.value:g}" if self.std is None else f"{self.value:g} \u00b1 {self.std:g}"


def read_record(folder: str | Path) -> Record:
    """Read all files of a run folder; missing ones yield empty values.

    Raises:
        ValueError: the folder is not a run, the run has no model, or a file is a link or cannot be read.
    """
    top = Path(folder)
    _refuse_links(top)
    if not (top / RUN_YAML).is_file():
        inside = " It is the model of a run: give its parent folder." if (top / "config.json").exists() else ""
        raise ValueError(f"{folder} is not a run folder: it has no run.yaml.{inside}")
    if (top / "sweep.json").is_file():
        raise ValueError(f"{folder} holds the runs of a sweep. Give the folder of one of them.")
    if not (top / "model" / "config.json").is_file():
        raise ValueError(f"{folder} has no model yet. Finish the run first (resume='latest' continues it).")
    run, facts = _read_run(top / RUN_YAML)
    seeds = facts.get("runs")
    run_folder = top / seeds[0] if seeds else top
    if seeds:
        if run_folder.is_symlink():
            raise ValueError(f"{run_folder} is a link. Move the folder itself there, then publish again.")
        _refuse_links(run_folder)
        run["seeds"], (_, facts) = len(seeds), _read_run(run_folder / RUN_YAML)
    if missing := [name for name in FACTS if name not in facts]:
        raise ValueError(f"{run_folder / 'run.yaml'} cannot be read: the comments at its end have no {missing[0]}.")
    files = {path.name for path in (top / "model").iterdir()}
    tokenizer = _read_json(top / "model" / "tokenizer_config.json")
    return Record(
        folder=run_folder,
        run=run,
        facts=facts,
        config=_read_json(top / "model" / "config.json"),
        manifest=_read_json(run_folder / "manifest.json"),
        evaluation=_read_json(top / EVALUATION),
        metrics=read_metrics(run_folder / METRICS),
        emissions=_read_emissions(run_folder / "emissions.csv"),
        has_chat_template="chat_template.jinja" in files or bool(tokenizer.get("chat_template")),
    )


def write_run(folder: str | Path, fields: dict[str, Any], notes: dict[str, Any]) -> None:
    """Write run.yaml: the fields of a run, which recipes read as a config, and notes as comments below them."""
    text = yaml.safe_dump(fields, sort_keys=False) + "\n"
    text += "".join(f"# {line}\n" for line in yaml.safe_dump(notes, sort_keys=False).splitlines())
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_text(Path(folder) / RUN_YAML, text)


def _refuse_links(folder: Path) -> None:
    # A link or a pipe may lead to a file outside the run.
    direct = [*(folder / name for name in (*FOLDERS, *RECORD_FILES)), *folder.glob("*.png")]
    for path in (*direct, *(inside for name in FOLDERS for inside in (folder / name).rglob("*"))):
        if path.is_symlink():
            raise ValueError(f"{path} is a link. Put the file itself there or remove the link, then publish again.")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is not a regular file. Remove it, then publish again.")


def _read_run(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    check_regular(file)
    with one_error(f"{file} cannot be read"):
        text = file.read_text(encoding="utf-8")
        notes = "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
        fields, facts = yaml.safe_load(text) or {}, yaml.safe_load(notes) or {}
        if not isinstance(fields, dict) or not isinstance(facts, dict):
            raise ValueError("it must hold `field: value` lines.")
        return fields, facts


def _read_json(file: Path) -> dict[str, Any]:
    content = read_json(file) if file.exists() else {}
    for field, (kind, item_kind) in FIELD_TYPES.items():
        value = content.get(field)
        if value is None:
            continue
        values = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or not all(isinstance(item, item_kind) for item in values):
            raise ValueError(f"{file} cannot be read: its {field} does not have the type that a run writes.")
    return content


def _read_emissions(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    check_regular(file)
    with one_error(f"{file} cannot be read"):
        text = file.read_text(encoding="utf-8")
        rows = csv.DictReader(text.splitlines())
        return [*{row.get("run_id", n): row for n, row in enumerate(rows)}.values()]  # the last row of each launch


# --- Values derived from a record --------------------------------------------------------------------------------


def at_step(record: Record, step: int) -> Record:
    """Return the record of a checkpoint: the evaluation at its step, and no later measurements."""
    metrics = [line for line in record.metrics if line["step"] <= step]
    evaluations = [line for line in metrics if line["step"] == step and "eval_loss" in line]
    values = {
        name.removeprefix("eval_"): x
        for name, x in (evaluations[-1] if evaluations else {}).items()
        if name[:5] == "eval_"
    }
    protocol = {**record.evaluation.get("protocol", {}), "step": step, "chosen_by": "a checkpoint"}
    evaluation = {"protocol": protocol, "results": {"validation": values}} if values else {}
    return record._replace(facts={**record.facts, "steps": step}, metrics=metrics, evaluation=evaluation, emissions=[])


def results(record: Record) -> list[Result]:
    """Return the numbers of evaluation.json, rounded: the card's text and its metadata use these."""
    content = record.evaluation.get("results", {})
    entries = []
    for split, values in content.items():
        if split == "train" or split.startswith("before/"):
            continue
        for metric, value in values.items():
            spread = value if isinstance(value, dict) else {"mean": value, "std": None, "n": 1}
            if not isinstance(spread.get("mean"), (int, float)) or not math.isfinite(spread["mean"]):
                continue
            before = content.get(f"before/{split}", {}).get(metric)
            before = before["mean"] if isinstance(before, dict) else before
            entries.append(
                Result(
                    split,
                    metric,
                    value=_round(spread["mean"]),
                    std=None if spread["std"] is None else _round(spread["std"]),
                    n=spread["n"],
                    before=None if before is None else _round(before),
                )
            )
    return entries


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def training_speed(record: Record) -> tuple[float, float] | None:
    """Return (median tokens per second, minutes of training without evaluations and checkpoints)."""
    steps = [line for line in record.metrics if line.get("tokens_per_second")]
    if not steps:
        return None
    tokens = [0, *(line["tokens"] for line in steps)]
    seconds = sum((b - a) / line["tokens_per_second"] for a, b, line in zip(tokens, tokens[1:], steps, strict=False))
    return median(line["tokens_per_second"] for line in steps), seconds / 60


def base_model(record: Record) -> tuple[str, str | None] | None:
    """Return the (Hub id, revision) of the base model; None for a new model, or if no file proves the id.

    The note `base` of run.yaml tells whether the base was a folder, and its fingerprint; old runs lack it. The Hub id
    of a folder is that of the hub.json next to it, if the fingerprint is the same.
    """
    name, base = record.run.get("model"), record.facts.get("base")
    if name is None:
        return None
    is_folder = Path(name).exists() or may_be_folder(name) if base is None else base["folder"] is not None
    if not is_folder:
        return name, record.run.get("model_revision")
    publication = published_as(name)
    if publication is None or (base is not None and publication.get("fingerprint") != base["fingerprint"]):
        return None
    return publication["repo"], publication["commit"]


def may_be_folder(name: str) -> bool:
    """Return whether a base without a note in run.yaml may have been a folder, such as a run's model."""
    return not is_hub_id(name) or Path(name).name == "model"


def published_as(model_folder: str | Path) -> dict[str, Any] | None:
    """Return hub.json of the run that a model folder belongs to: {"repo", "revision", "commit", "layout"}."""
    path = Path(model_folder)
    return _read_json(path.parent / PUBLISHED) or None if path.is_dir() else None


def is_hub_id(name: Any) -> bool:
    """Return whether a name can be that of a repository on the Hub.

    Example:
        >>> [is_hub_id(name) for name in ("openai-community/gpt2", "./runs/mine")]
        [True, False]
    """
    return isinstance(name, str) and HUB_ID.fullmatch(name) is not None


def hub_datasets(record: Record) -> list[str]:
    """Return the ids of the Hub datasets that the model was trained on."""
    sources = record.manifest.get("sources", [])
    return list(dict.fromkeys(source["dataset"] for source in sources if is_on_hub(source)))


def is_on_hub(source: dict[str, Any]) -> bool:
    """Return whether a source of the manifest is a Hub dataset: it has a commit, and no hashes of files."""
    is_local = any("sha256" in file for file in source.get("files", [])) or "prepared" in source
    return not is_local and source["dataset"] != "python-docs" and is_hub_id(source["dataset"])


__all__ = [
    "Record",
    "Result",
    "at_step",
    "base_model",
    "hub_datasets",
    "is_hub_id",
    "is_on_hub",
    "may_be_folder",
    "published_as",
    "read_record",
    "results",
    "training_speed",
    "write_run",
]
