"""A run folder without weights, written by hand, and its card."""

import json
from pathlib import Path

import yaml

from scratch_gpt.hub.card import fill, template
from scratch_gpt.hub.card_values import card_values
from scratch_gpt.runs.record import read_record


COMMIT = "0123456789abcdef0123456789abcdef01234567"
FACTS = {
    "steps": 20,
    "schedule": {"peak": 1e-3, "floor": 1e-4, "warmup_steps": 2},
    "parameters": 1234,
    "device": "cpu",
}
FACTS |= {"trained_parameters": 1234, "precision": "no", "threads": 2, "processes": 1, "versions": {"torch": "2.13.0"}}
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
SPREAD = {"mean": 0.912345678, "std": 0.01234567, "n": 5}
MANIFESTS = {
    "pretrain": {"dataset": "notes", "files": [{"name": "a.md", "bytes": 1200, "sha256": "ab" * 32}]},
    "classify": {"dataset": "ada/mails", "revision": COMMIT, "files": [{"name": "train.parquet"}]},
    "instruct": {"dataset": "lab/tasks", "revision": COMMIT, "files": [{"name": "train.json"}]},
}


def write_run(folder: Path, task: str = "pretrain", facts: dict | None = None, **changes) -> Path:
    """Write the files of a run as the recipes do, without weights."""
    head = "SequenceClassification" if task == "classify" else "CausalLM"
    config = {"architectures": [f"ScratchGPTFor{head}"], "vocab_size": 99, **SHAPE}
    if task == "classify":
        config["id2label"] = {"0": "ham", "1": "spam"}
    metrics = (
        {"loss": 2.123456789, "perplexity": 8.36} if task != "classify" else {"accuracy": SPREAD, "macro_f1": 0.9}
    )
    tables = {"labels": ["ham", "spam"], **{name: {"ham": 0.9, "spam": 1.0} for name in ("precision", "recall", "f1")}}
    files = {
        "model/config.json": config,
        "manifest.json": {
            "task": task,
            "max_length": 64,
            "sources": [MANIFESTS[task]],
            "filters": {},
            "mixture": None,
            "splits": {"train": {"documents": 9, "rows": 9, "tokens": 900, "bytes": 3000, "sha256": "cd" * 32}},
        },
        "evaluation.json": {
            "protocol": {"step": 20, "chosen_by": "last step", "eval_batches": None},
            "results": {"before/test": {"loss": 4.6}, "test": metrics},
            "tables": {"test": tables} if task == "classify" else {},
        },
    }
    run = {"output_dir": "runs/x", "model": None, "seed": 0, "batch_size": 8, "accumulation_steps": 1, "tune": "full"}
    run |= {"sample_prompt": "The", **changes}
    (folder / "model").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if task == "instruct":
        (folder / "model" / "chat_template.jinja").write_text("{{ messages }}")
    notes = "".join(f"# {line}\n" for line in yaml.safe_dump({**FACTS, **(facts or {})}, sort_keys=False).splitlines())
    (folder / "run.yaml").write_text(yaml.safe_dump(run) + "\n" + notes)
    lines = [{"step": 10 * n, "tokens": 640 * n, "loss": 3.0, "epoch": 0.1, "tokens_per_second": 1e3} for n in (1, 2)]
    lines += [{"step": 20, "tokens": 1280, "eval_loss": 2.1, "sample": "The <b>sea</b> [x](y) | {{title}}"}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def card_of(folder: Path, layout: str = "scratch_gpt", **how) -> str:
    values = card_values(read_record(folder), repo="ada/x", layout=layout, pictures=["loss.png"], **how)
    return fill(template(), values)
