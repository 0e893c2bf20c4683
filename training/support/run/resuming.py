"""Compare a checkpoint's record with the run that resumes it, and reject or report changes. Not a recipe itself."""

import platform
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

import torch

from scratch_gpt.train.batches import BatchLayout
from scratch_gpt.train.checkpoints import take_fields
from scratch_gpt_training.support.options import Run, vocabulary_size
from scratch_gpt_training.support.run.output_dir import relative


# Fields that decide what is learned. (For fields that name data or a model, its hash or its config is compared.)
PROMISED = {
    "seed",
    "batch_size",
    "accumulation_steps",
    "learning_rate",
    "min_learning_rate",
    "warmup_steps",
    "optimizer",
    "beta2",
    "schedule",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "stride",
    "overlap",
    "drop_tail",
    "pack",
    "pad",
    "mask_inputs",
    "balance",
    "streaming",
    "stream_lanes",
    "tune",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
    "lora_init",
    "use_rslora",
    "use_dora",
    "quantize_base",
    "loss_type",
    "beta",
    "simpo_gamma",
}
THIS_LAUNCH = {
    "resume",
    "manifest",
    "overwrite",
    "allow_changed",
    "output_dir",
    "expect_processes",
    "hang_timeout",
    "push_to_hub",
    "learning_rates",
    "sweep",
    "encoder",
    "plan",
    "plan_devices",
    "plan_tflops",
}  # not compared
NOT_SHAPE = {"transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype"}
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors", "numpy")


def make_record(run: Run, model_config: dict[str, Any], data: dict[str, Any], accelerator) -> dict[str, Any]:
    """Return everything that decides a run, as JSON: checkpoints store it, and resuming compares it."""
    config = {name: relative(value) for name, value in asdict(run).items() if name not in THIS_LAUNCH}
    return {
        "config": {**config, "vocab_size": vocabulary_size(run)},
        "model": {name: value for name, value in model_config.items() if name not in NOT_SHAPE},
        "data": data,
        "environment": {
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
            "threads": torch.get_num_threads(),
            "processes": accelerator.num_processes,
            "compile": run.compile,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        },
    }


def check_record(saved: dict[str, Any], now: dict[str, Any], allow_changed: bool, keeps_batch: bool) -> list[str]:
    """Return notices about changes between a checkpoint's record and this run's.

    Args:
        keeps_batch: another number of processes shares the same global batch, so its split is not a change.

    Raises:
        ValueError: a change that makes the resumed run different from the original.
    """
    changed = _differences(saved, now)
    for item in fields(Run):  # an option that is newer than the checkpoint, at its default
        if item.name not in saved["config"] and now["config"].get(item.name) == item.default:
            changed.pop(f"config.{item.name}", None)
    if keeps_batch:
        changed = {name: pair for name, pair in changed.items() if name.removeprefix("config.") not in _CUT}
    breaking = {name: pair for name, pair in changed.items() if _breaks(name)}
    lines = []
    if breaking and not allow_changed:
        raise ValueError(
            f"The checkpoint was made with another {_list(breaking)}. Resuming would not reproduce the original run. "
            "Give the original options (--config OUTPUT_DIR/run.yaml), or --allow-changed true."
        )
    if breaking:
        lines.append(f"Changed, and allowed: {_list(breaking)}.")
    surroundings = {name: pair for name, pair in changed.items() if name.startswith("environment.")}
    if surroundings:
        lines.append(f"Changed: {_list(surroundings)}. The run continues, equal up to rounding, not bit for bit.")
    harmless = {name: pair for name, pair in changed.items() if name not in breaking and name not in surroundings}
    if harmless:
        lines.append(f"Changed: {_list(harmless)}.")
    return lines


def check_same_run(records: list[dict[str, Any]]) -> None:
    """Raise a ValueError if processes would train different runs; each gives its record and the step it resumes."""
    for record in records[1:]:
        if differing := {name: pair for name, pair in _differences(records[0], record).items() if _breaks(name)}:
            raise ValueError(
                f"The processes of this launch differ in {_list(differing)}. Give all machines the same options, data "
                "and checkpoints, with an --output-dir on a shared disk."
            )


_CUT = {"batch_size", "accumulation_steps"}


def _breaks(name: str) -> bool:
    room, _, field = name.partition(".")
    return (
        room in ("model", "data", "resume")
        or name == "environment.precision"
        or (room == "config" and field in PROMISED)
    )


def _differences(saved: Any, now: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    # Return the leaves that differ, as {"config.seed": (0, 1), ...}.
    if not (isinstance(saved, dict) and isinstance(now, dict)):
        return {} if saved == now else {name: (saved, now)}
    differences = {}
    for key in {**saved, **now}:
        differences.update(_differences(saved.get(key), now.get(key), f"{name}.{key}" if name else str(key)))
    return differences


def _list(changed: dict[str, tuple[Any, Any]]) -> str:
    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 40 else f"{text[:12]}..."

    items = [(name.removeprefix("config."), before, after) for name, (before, after) in changed.items()]
    items.sort(key=lambda item: "." in item[0])  # options first, then what follows from them
    texts = [f"{name} ({short(before)} -> {short(after)})" for name, before, after in items[:6]]
    return ", ".join(texts) + (f" and {len(items) - 6} more" if len(items) > 6 else "")


def resolve_split(run: Run, saved: dict[str, Any] | None, processes: int) -> tuple[int, int]:
    """Return batch_size and accumulation_steps: the run's own, or those that keep a resumed run's global batch.

    Args:
        saved: the state of the checkpoint to resume from.

    Raises:
        ValueError: the global batch cannot be shared by this number of processes.
    """
    given_split = run.batch_size, run.accumulation_steps
    if saved is None or given_split != tuple(
        saved["record"]["config"][name] for name in ("batch_size", "accumulation_steps")
    ):
        return given_split
    share = take_fields(BatchLayout, saved["share"])
    batch_size, rows = share.batch_size, share.global_batch
    if rows % (batch_size * processes):
        raise ValueError(
            f"The run has a global batch of {rows} rows; {processes} processes with batch_size {batch_size} cannot "
            f"share it. Use a number of processes that divides {rows // batch_size}, or another --batch-size with "
            "--allow-changed true."
        )
    return batch_size, rows // (batch_size * processes)


__all__ = ["check_record", "check_same_run", "make_record", "resolve_split"]
