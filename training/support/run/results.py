"""Save a finished run: the model, evaluation.json, plots and the summary to print."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType

from scratch_gpt.finetuning.lora import has_lora, merged_state, save_adapter
from scratch_gpt.runs.folder import EVALUATION, METRICS, RUN_YAML, STEP_FILE, read_metrics, replace_folder
from scratch_gpt.train.checkpoints import check_written, load_weights, tensor_shapes, whole_weights
from scratch_gpt.train.loop import Progress
from scratch_gpt.utils.files import DRAFT, remove, write_text
from scratch_gpt.utils.foreign import shown
from scratch_gpt.utils.loading import load_complete
from scratch_gpt.utils.wording import duration, plural
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.options import Run
from scratch_gpt_training.support.run.task import Task


PREFIXES = {"validation": "eval_", "seen": "train_", "test": "test_"}  # of each split's names in metrics.jsonl


def _unprefixed(line: dict[str, Any] | None, prefix: str = "eval_") -> dict[str, float] | None:
    metrics = {name.removeprefix(prefix): value for name, value in (line or {}).items() if name.startswith(prefix)}
    return metrics or None


def model_files(task: Task) -> dict[str, bytes]:
    # Return the files of a model folder other than weights: config, generation config, code, tokenizer.
    with tempfile.TemporaryDirectory() as folder:
        task.model.save_pretrained(folder, state_dict={})
        task.tokenizer.save_pretrained(folder)
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.suffix != ".safetensors"]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def save_model(accelerator, model, tokenizer, folder: Path, save: Callable, step: int) -> None:
    # Write a loadable folder atomically: weights, config, generation config, code, tokenizer. With LoRA, write the
    # merged model, and for model/ also the LoRA weights to adapter/.
    sharded = accelerator.distributed_type == DistributedType.FSDP
    tensors = {"state_dict": whole_weights(model)} if sharded else {}  # on every process
    unwrapped = accelerator.unwrap_model(model)

    def write(target: Path, save_weights: Callable[[Path], Any]) -> None:
        if accelerator.is_main_process:
            draft = target.with_name(DRAFT + target.name)
            remove(draft)
            save_weights(draft)
            tokenizer.save_pretrained(draft)
            (draft / STEP_FILE).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
            replace_folder(draft, target)

    def save_weights(draft: Path) -> None:
        merged = {"state_dict": merged_state(unwrapped)} if has_lora(unwrapped) else tensors
        unwrapped.save_pretrained(draft, **merged)
        with torch.device("meta"):
            plain = type(unwrapped)._from_config(unwrapped.config) if has_lora(unwrapped) else unwrapped
        check_written(sorted(draft.glob("*.safetensors")), tensor_shapes(plain))

    if has_lora(unwrapped) and folder.name == "model":
        save("adapter/", lambda: write(folder.with_name("adapter"), partial(save_adapter, unwrapped)))
    save(f"{folder.name}/", lambda: write(folder, save_weights))


def load_best(accelerator, model, prepared, folder: Path):
    # Return the prepared model with the weights of model/. With LoRA these are merged, so they need a separate model.
    best = load_complete(type(model), folder, attn_implementation=model.config._attn_implementation)
    if has_lora(model):
        return accelerator.prepare_model(best, evaluation_mode=True)
    load_weights(prepared, best.state_dict())
    return prepared


def plot_run(accelerator, folder: Path, run: Run, task: Task) -> None:
    metrics = read_metrics(folder / METRICS) if accelerator.is_main_process else []
    if metrics:
        model, dataset = (Path(name).name for name in (run.model or run.preset or "tiny", run.dataset))
        task.hooks.plot(metrics, folder / "loss.png", title=shown(f"{model} on {dataset}"))


def write_evaluation(
    run: Run, task: Task, folder: Path, progress: Progress, test, tables: dict[str, Any], last_is_best: bool
) -> dict[str, dict[str, float]]:
    by_step = {line["step"]: line for line in read_metrics(folder / METRICS) if "eval_loss" in line}
    step = progress.step if last_is_best else progress.best_step
    results = {
        **{f"before/{split}": _unprefixed(by_step.get(0), PREFIXES[split]) for split in ("validation", "test")},
        "train": _unprefixed(by_step.get(step), PREFIXES["seen"]),
        "validation": _unprefixed(by_step.get(step)),
        "test": test,
    }
    results = {name: values for name, values in results.items() if values is not None}
    content = {
        "format_version": 1,
        "protocol": {
            "model": "model/",
            "step": step,
            "chosen_by": "last step" if last_is_best else "lowest validation loss",
            "eval_batches": run.eval_batches,
            **task.facts,
        },
        "results": results,
        "tables": {"test": tables} if tables else {},
    }
    write_text(folder / EVALUATION, json.dumps(content, indent=2) + "\n")
    return results


def append_metrics(folder: Path, progress: Progress, values: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl after training."""
    line = json.dumps({"step": progress.step, "tokens": progress.tokens, **values})
    text = (folder / METRICS).read_text(encoding="utf-8") if (folder / METRICS).exists() else ""
    write_text(folder / METRICS, f"{text}{line}\n")


OUTPUTS = {  # name in the folder of a run: its content
    "model": "weights, config, code and tokenizer; any Hugging Face client loads it",
    "last": "the weights of the last step; model/ has the best ones",
    "adapter": "the LoRA weights; peft loads them on the base model",
    "predictions.jsonl": "each test text with its label and probabilities",
    "responses.json": "answers to the test questions, before and after training",
    "confusion.png": "confusion matrix of the test split",
    "loss.png": "loss curve",
    METRICS: "all measurements",
    EVALUATION: "final scores",
    RUN_YAML: "settings to repeat the run",
    "checkpoints": "states to resume from",
}


def summary(
    run: Run, task: Task, progress: Progress, steps: int, results: dict[str, dict[str, float]], seconds: float
) -> str:
    """Return the text to print at the end: scores before and after, a sample, the files written, the next commands."""
    folder = Path(run.output_dir)
    early = f" (stopped early; the limit was {steps:,} steps)" if progress.stopped_early else ""
    work = f"{plural(progress.step, 'step')}, {plural(progress.tokens, 'token')}{early}"
    metrics = read_metrics(folder / METRICS)
    lines = ["", f"Finished: {work} in {duration(seconds)}.", *scores(metrics, results)]
    if metrics and (sample := metrics[-1].get("sample")):
        lines.append(f"Sample ({task.hooks.sample_method}): {' '.join(sample.split())}")
    paths = {name: f"{folder / name}" for name in OUTPUTS if (folder / name).exists()}
    width = max(map(len, paths.values()))
    lines += ["Written:", *(f"  {path:<{width}}  {OUTPUTS[name]}" for name, path in paths.items())]
    lines += ["Next:", *(f"  {command(step.format(folder=folder))}" for step in task.next_steps)]
    return "\n".join(lines)


def scores(metrics: list[dict[str, Any]], results: dict[str, dict[str, float]]) -> list[str]:
    """Return a table of the training loss and the scores of each split, before and after training."""
    rows = []
    losses = [line["loss"] for line in metrics if line.get("loss") is not None]
    if "train" not in results and losses:
        rows.append(("training loss", losses[0], losses[-1]))
    for split in ("train", "validation", "test"):
        before = results.get(f"before/{split}", {})
        for name, value in results.get(split, {}).items():
            rows.append((f"{split} {name}", before.get(name), value))
    if not rows:
        return []
    width = max(len(name) for name, *_ in rows)
    cells = [(name, *("" if value is None else f"{value:.4f}" for value in values)) for name, *values in rows]
    head = f"  {'':<{width}}  {'before':>12}  {'after':>12}"
    return [head, *(f"  {name:<{width}}  {before:>12}  {after:>12}" for name, before, after in cells)]
