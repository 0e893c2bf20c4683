"""A built task -> a run folder: what happens around loop.train in every recipe. Not a recipe itself.

prepare(run)      before anything heavy: the folder, and what to resume from
run_task(...)     build what the run asks for, say what is about to happen, and carry it out
carry_out(...)    train, keep the best or the last, score the test split once, write pictures and records
finish(...)       leave the process group; publish
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from recipe import Run, check_output_dir, check_writable, one_clear_line, peak_rate, write_run_yaml
from resuming import check_record, check_same_run, make_record, settle_share
from scratch_gpt.adapters import add_lora, count_parameters, freeze, has_lora, merged_state, save_adapter
from scratch_gpt.checkpoints import (
    DRAFT,
    CheckpointError,
    adopt,
    check_shapes,
    check_written,
    find_checkpoint,
    find_damage,
    find_folder,
    load_weights,
    own_name,
    read_metrics,
    read_state,
    replace_folder,
    take_fields,
    tensor_shapes,
    whole_weights,
    write_text,
)
from scratch_gpt.costs import Tune, row_flops
from scratch_gpt.data.manifest import NAME as MANIFEST
from scratch_gpt.energy import EMISSIONS, measure_energy
from scratch_gpt.folders import (
    ASIDE,
    STEP,
    is_run,
    is_whole_file,
    remove,
    remove_files,
    remove_replaced,
    set_aside,
)
from scratch_gpt.foreign import FileChanged, shown
from scratch_gpt.launch import best_attention, check_launch, describe_device, make_accelerator
from scratch_gpt.loading import load_complete
from scratch_gpt.locks import hold
from scratch_gpt.loop import Progress, Settings, planned_steps, train
from scratch_gpt.objectives import Objective
from scratch_gpt.optimizers import learning_rate_at, make_optimizer
from scratch_gpt.order import Share, evaluation_batches
from scratch_gpt.plots import plot_loss
from scratch_gpt.probe import device_peak
from scratch_gpt.saving import RunStopped, guard_saves, last_good, name_last_good
from scratch_gpt.watchdog import watch


DEFAULT_EPOCHS = 3  # where no limit is given
PREFIXES = {"validation": "eval_", "seen": "train_", "test": "test_"}  # of a split's names in metrics.jsonl


class Task(NamedTuple):
    """What a recipe builds.

    Of `rows`, "train" (a sequence, or a stream) is learned. "validation" is evaluated on the way, and with it "seen",
    a part of what is learned; "test" is scored once before the first step and once at the end. Each may be missing.
    """

    model: Any  # a PreTrainedModel
    tokenizer: Any
    rows: dict[str, Any]
    collate: Callable[[list], dict[str, torch.Tensor]]
    objective: Objective
    measure: Callable[..., tuple[dict[str, float], dict[str, Any]]]  # model, batches, reduce, split -> metrics, tables
    tokens_per_row: float
    manifest: dict[str, Any]  # of the data (data/manifest.py)
    next_steps: tuple[str, ...]  # commands, {folder} is the run's
    sample: Callable[[Any], str] | None = None  # model -> a text to look at after each evaluation
    group_by_length: bool = False
    alter: Callable[[Any, int], Any] | None = None  # (row, place) -> the row as it is learned from there
    draw: Callable[..., Any] = plot_loss  # metrics.jsonl's lines, file, title -> loss.png
    # model, tables of the test split -> what else is left, {file name: what writes it}; called on every process
    leave: Callable[[Any, dict[str, Any]], dict[str, Callable[[Path], Any]]] | None = None
    # accelerator, folder, save: what the rows still need before the first step; called on every process
    ready: Callable[[Any, Path, Callable], Any] = lambda accelerator, folder, save: None
    sequences: int = 1  # texts that a row has
    notices: Sequence[str] = ()  # what to say before training

    @property
    def facts(self) -> dict[str, Any]:
        """What of the data decides a run."""
        return {**self.manifest["splits"], "tokenizer": self.manifest["tokenizer"]["fingerprint"]}


class Start(NamedTuple):
    """Where a run is written and what it goes on from."""

    folder: Path
    resume_from: Path | None
    notices: list[str]
    saved: dict[str, Any] | None = None  # the state of the checkpoint
    best_is_there: bool = True  # whether model/, where the best is kept, is of the checkpoint's best step
    lock: Any = nullcontext()  # of the folder, on the first process


def prepare(run: Run) -> Start:
    """Settle folder and checkpoint; ValueError where either or a setting of the launch cannot be used."""
    check_launch(run.expect_processes)
    lock = hold_output(run)
    try:
        return find_start(run)._replace(lock=lock)
    except BaseException:
        lock.__exit__()
        raise


def hold_output(run: Any) -> Any:
    """Hold output_dir until the end of `with`, on the first process; ValueError where another launch holds it."""
    check_writable(Path(run.output_dir))
    return hold(run.output_dir) if os.environ.get("RANK", "0") == "0" else nullcontext()


def keeps_best(run: Run) -> bool:
    """Return whether model/ is to be the best by validation loss."""
    return run.keep_best or run.patience is not None


def find_start(run: Run) -> Start:
    """Return where a run begins in its folder; ValueError where that cannot be."""
    folder = check_output_dir(run)
    if run.resume is None:
        return Start(folder, None, [])
    if run.resume != "latest":
        path = Path(run.resume)
        if not path.is_dir():
            raise ValueError(f"--resume {run.resume}: there is no such folder. Give one, or `latest`.")
        if problem := find_damage(path):
            raise ValueError(f"--resume {run.resume} is no whole checkpoint: {problem}.")
        if is_run(folder) and not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"--resume {run.resume} is of another run than output_dir {run.output_dir} holds, which it would "
                "replace. Give another --output-dir."
            )
        return start_from(run, folder, path, [])
    path, skipped = find_checkpoint(folder / "checkpoints")
    if path is None and (folder / "evaluation.json").exists():
        raise ValueError(
            f"{run.output_dir} holds a finished run and no checkpoint to go on from. Give another --output-dir."
        )
    if path is None:
        return Start(folder, None, [f"No checkpoint in {run.output_dir} yet: starting from the beginning."])
    return start_from(run, folder, path, [*skipped, f"Going on from {own_name(path)}."])


def start_from(run: Run, folder: Path, path: Path, notices: list[str]) -> Start:
    """Return the start from a checkpoint, which says where the best so far is not in model/ any more."""
    saved = read_state(path)
    best = take_fields(Progress, saved["progress"]).best_step
    if not keeps_best(run) or best in (None, best_step_of(folder)):
        return Start(folder, path, notices, saved)
    notice = f"The best step so far, {best}, is not in {run.output_dir}/model: from here the best is chosen anew."
    return Start(folder, path, [*notices, notice], saved, best_is_there=False)


def best_step_of(folder: Path) -> int | None:
    """The step whose weights model/ holds; where an older run has not written it, by its metrics."""
    model = find_folder(folder / "model")
    if not is_whole(model):
        return None
    try:
        return json.loads((model / STEP).read_text(encoding="utf-8"))["step"]
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        return None
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if math.isfinite(line.get("eval_loss", math.nan))]
    return min(lines, key=lambda line: line["eval_loss"])["step"] if lines else None


def apply_tune(run: Run, model) -> list[str]:
    """Leave trainable what the run tunes, in place; what to say of it."""
    if run.tune != "lora":
        return freeze(model, run.tune)
    add_lora(
        model,
        base=run.model,
        revision=getattr(model.config, "_commit_hash", None) or run.model_revision,
        rank=run.lora_rank,
        alpha=run.lora_alpha,
        dropout=run.lora_dropout,
        targets=run.lora_targets,
        init=run.lora_init,
        use_rslora=run.use_rslora,
        use_dora=run.use_dora,
        quantize=None if run.quantize_base == "no" else run.quantize_base,
    )
    return []


def run_task(
    run: Run,
    start: Start,
    build: Callable[[Run], Task],
    describe: Callable[..., str],
    begin: Callable[[Any], Any] = lambda accelerator: None,
):
    """One run, from its rows to its folder; returns its accelerator, whose process group the caller leaves.

    Args:
        describe: (run, task, settings, steps, accelerator) -> what is about to happen, in a few lines.
        begin: called with the accelerator when nothing can be refused any more.
    """
    with start.lock:
        return _run_task(run, start, build, describe, begin)


def _run_task(run: Run, start: Start, build, describe, begin):
    with one_clear_line():
        task = build(run)
        if "validation" not in task.rows and keeps_best(run):
            raise ValueError(f"keep_best and patience choose by validation loss, and {run.dataset} has no such split.")
        accelerator = start_accelerator(run, start)
        task.model.set_attn_implementation(
            best_attention(accelerator.device.type, accelerator.mixed_precision, task.manifest["max_length"])
        )
        settings, steps = settle(run, start, task, accelerator.num_processes)
        record, changes = compare(run, start, task, accelerator, settings)
        for notice in (*start.notices, *task.notices, *changes):
            accelerator.print(shown(notice))
        if is_finished(run, start, steps):
            accelerator.print(f"{run.output_dir} is already finished. A larger limit (or --patience) goes on with it.")
            return accelerator
        accelerator.print(shown(describe(run, task, settings, steps, accelerator)))
    # Code that hangs says so and ends here; an end from outside, and lack of room, name the last checkpoint too.
    stacks = start.folder / f"stacks-{accelerator.process_index}.txt"
    goes_on = lambda: f"{last_good(start.folder)} --resume latest goes on from there."  # noqa: E731
    watched = watch(60 * run.hang_timeout, stacks, goes_on)
    with one_clear_line(MemoryError, CheckpointError, RunStopped, FileChanged), name_last_good(start.folder), watched:
        begin(accelerator)
        with measure_energy(start.folder / EMISSIONS, run.energy if accelerator.is_main_process else None):
            carry_out(run, start, task, accelerator, settings, steps, record)
    return accelerator


def finish(run: Run, accelerator) -> None:
    """Leave the process group, and publish the run where it is asked to: what training/publish.py does."""
    is_main = accelerator.is_main_process
    accelerator.end_training()
    if run.push_to_hub is None or not is_main:
        return
    from scratch_gpt.hub import publish

    by_hand = f"The run is whole: python training/publish.py {run.output_dir} --repo {run.push_to_hub} publishes it."
    with one_clear_line(stopped=by_hand):
        try:
            push = publish(run.output_dir, run.push_to_hub)
        except ValueError as error:
            raise ValueError(f"{error} {by_hand}") from error
    print(f"Published: {push.url} (commit {push.commit})")


def start_accelerator(run: Run, start: Start):
    """The launch this run is on, checked against what it asks for; a resumed run keeps its precision."""
    report_to = None if run.report_to == "none" else run.report_to
    precision = run.mixed_precision
    if precision == "auto" and start.saved is not None:
        precision = start.saved["record"]["environment"]["precision"]
    accelerator = make_accelerator(run.device, precision, run.expect_processes, report_to, start.folder)
    if run.tune == "lora" and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("--tune lora is merged from whole weights, which FSDP shards: launch it with DDP instead.")
    return accelerator


def settle(run: Run, start: Start, task: Task, processes: int) -> tuple[Settings, int]:
    """The loop's settings and number of steps; ValueError where nothing says how long to train."""
    batch_size, accumulation_steps = settle_share(run, start.saved, processes)
    no_limit = run.epochs is run.max_steps is run.max_tokens is None
    settings = Settings(
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        max_steps=run.max_steps,
        epochs=DEFAULT_EPOCHS if no_limit and not run.streaming else run.epochs,
        max_tokens=run.max_tokens,
        max_seconds=None if run.max_time is None else 60 * run.max_time,
        max_grad_norm=run.max_grad_norm or None,
        max_bad_steps=run.max_bad_steps,
        eval_every=run.eval_every,
        patience=run.patience,
        checkpoint_every=run.checkpoint_every,
        keep=run.keep,
        async_save=run.async_save,
        log_every=run.log_every,
        group_by_length=task.group_by_length,
        workers=run.workers,
        seed=run.seed,
    )
    rows = None if run.streaming else len(task.rows["train"])
    steps = planned_steps(settings, rows, processes, task.tokens_per_row)
    if settings.eval_every is None:
        settings = replace(settings, eval_every=max(1, math.ceil(steps / 10)))
    if settings.checkpoint_every is None:
        settings = replace(settings, checkpoint_every=settings.eval_every)
    return settings, steps


def compare(run: Run, start: Start, task: Task, accelerator, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """The record of this run, and what has changed since the checkpoint; ValueError for what may not change."""
    record = make_record(run, task.model.config.to_dict(), task.facts, accelerator)
    record = json.loads(json.dumps(record))  # as it is read back
    step = None if start.saved is None else start.saved["progress"]["step"]
    check_same_run(gather_object([{**record, "resume": {"step": step}}]))
    if start.saved is None:
        return record, []
    check_shapes(start.resume_from, task.model)
    then = take_fields(Share, start.saved["share"])
    now = Share(settings.batch_size, settings.accumulation_steps, accelerator.num_processes)
    keeps_batch = now.global_batch == then.global_batch and now.processes != then.processes
    return record, check_record(start.saved["record"], record, run.allow_changed, keeps_batch)


def is_finished(run: Run, start: Start, steps: int) -> bool:
    """Whether the run that `start` resumes has nothing left to do."""
    if start.saved is None or not (start.folder / "evaluation.json").exists() or not is_whole(start.folder / "model"):
        return False
    progress = take_fields(Progress, start.saved["progress"])
    return progress.step >= steps or progress.evaluations_since_best >= (run.patience or math.inf)


def is_whole(folder: Path) -> bool:
    """Whether a model folder's weights are there and none is cut off."""
    files = sorted(folder.glob("*.safetensors"))
    try:
        for file in files:
            with safe_open(file, framework="pt"):
                pass
    except (OSError, SafetensorError):
        return False
    return bool(files)


def carry_out(
    run: Run, start: Start, task: Task, accelerator, settings: Settings, steps: int, record: dict[str, Any]
) -> None:
    """Train and leave a whole run folder behind."""
    folder, say = start.folder, accelerator.print
    rates = _rates(run, steps)
    accelerator.wait_for_everyone()  # all have read what is renamed now
    if accelerator.is_main_process:
        if run.overwrite:
            clear(folder)
        settle_folders(start)
        trained, parameters = count_parameters(task.model)
        counts = {"parameters": parameters, "trained_parameters": trained}
        facts = {"steps": steps, "schedule": rates, **counts, "hardware": describe_device(accelerator.device)}
        facts |= record["environment"]
        if run.model is not None:
            facts["base"] = task.model.base_identity
        write_run_yaml(run, folder, {**facts, "data": task.facts})
        write_text(folder / MANIFEST, json.dumps(task.manifest, indent=2) + "\n")
    accelerator.wait_for_everyone()
    if run.report_to not in (None, "none"):
        accelerator.init_trackers("tracking")
    keep_best = keeps_best(run)
    resume_from = start.resume_from and start.resume_from.with_name(own_name(start.resume_from))
    save = guard_saves(accelerator, folder, stop=run.on_save_error == "stop")
    task.ready(accelerator, folder, save)

    def evaluate(model, split: str) -> tuple[dict[str, float], dict[str, Any]]:
        share = Share(settings.batch_size, 1, accelerator.num_processes, accelerator.process_index)
        batches = evaluation_batches(
            *(task.rows[split], task.collate, share, accelerator.device),
            batches=None if split == "test" else run.eval_batches,
            workers=run.workers,
        )
        sum_over_processes = None
        if accelerator.num_processes > 1:
            sum_over_processes = lambda pair: accelerator.reduce(pair.to(accelerator.device), "sum")  # noqa: E731
        return task.measure(model, batches, sum_over_processes, split)

    due = {"validation", "seen"} | ({"test"} if resume_from is None else set())

    def evaluate_and_sample(model) -> dict[str, Any]:
        values, unwrapped = {}, accelerator.unwrap_model(model)
        sharded = accelerator.distributed_type == DistributedType.FSDP  # every process has a part of each matrix
        with uncompiled(unwrapped):
            for split, prefix in PREFIXES.items():
                if split in due and split in task.rows:
                    values |= {f"{prefix}{name}": value for name, value in evaluate(model, split)[0].items()}
            due.discard("test")
            if task.sample is not None:
                values["sample"] = _sample(task, unwrapped) if sharded or accelerator.is_main_process else ""
        return values

    def on_evaluation(model, progress: Progress, is_best: bool) -> str:
        if keep_best and is_best:
            _save_model(accelerator, model, task.tokenizer, folder / "model", save, progress.step)
        save("loss.png", lambda: _draw(accelerator, folder, run, task))
        numbers = {name: value for name, value in progress.last_evaluation.items() if name.startswith("eval_")}
        values = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        sample = shown(" ".join(progress.last_evaluation.get("sample", "").split()))
        return f"step {progress.step}: {values}{'  (best)' if is_best else ''}" + (f"\n    {sample}" if sample else "")

    has_validation = "validation" in task.rows
    betas = (0.9, run.beta2)
    fastest = tokens_at_peak(run, task, accelerator) if accelerator.is_main_process else None
    model, progress = train(
        *(accelerator, task.model, make_optimizer(task.model, rates["peak"], run.weight_decay, run.optimizer, betas)),
        learning_rate=lambda step: learning_rate_at(step, steps, **rates),
        rows=task.rows["train"],
        collate=task.collate,
        objective=task.objective,
        settings=settings,
        steps=steps,
        output_dir=folder,
        evaluate=evaluate_and_sample if has_validation else None,
        on_evaluation=on_evaluation,
        resume_from=resume_from,
        best_is_there=start.best_is_there,
        record=record,
        model_files=_model_files(task) if accelerator.is_main_process else None,
        save=save,
        alter=task.alter,
        peak_tokens_per_second=fastest,
    )
    save = guard_saves(accelerator, folder)  # without its model a run has not ended
    last_is_best = not keep_best or progress.best_step in (None, progress.step)
    if not last_is_best and best_step_of(folder) != progress.best_step:
        say(f"model/ does not hold the best step, {progress.best_step}, which could not be saved: it takes the last.")
        last_is_best = True
    name = "model" if last_is_best else "last"
    accelerator.wait_for_everyone()  # all have looked at model/
    _save_model(accelerator, model, task.tokenizer, folder / name, save, progress.step)
    if last_is_best and accelerator.is_main_process:
        remove_folder(folder / "last")  # of a run that was stopped before it became the best
    if "test" in task.rows and not last_is_best:
        model = _load_best(accelerator, task.model, model, folder / "model")
    test, tables = evaluate(model, "test") if "test" in task.rows else (None, {})
    save("loss.png", lambda: _draw(accelerator, folder, run, task))
    for name, write in (task.leave(model, tables) if task.leave else {}).items():
        save(name, lambda write=write, name=name: write(folder / name) if accelerator.is_main_process else None)
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        results = _write_evaluation(run, task, folder, progress, test, tables, last_is_best)
        remove_replaced(folder)  # a run that only evaluates has no checkpoint
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
    say(shown(_farewell(run, task, progress, steps, results)))


def tokens_at_peak(run: Run, task: Task, accelerator) -> float | None:
    """Tokens a second, counted as the loop counts them, if all matrix products ran at the devices' peak; or None."""
    peak = device_peak(accelerator.device, accelerator.mixed_precision)
    if peak is None:
        return None
    length = sum(task.rows["train"].lengths) / len(task.rows["train"]) if task.group_by_length else None
    tune = Tune(run.tune, run.lora_rank, run.lora_targets)
    classes = len(task.model.config.id2label) if hasattr(task.model, "score") else None
    flops = row_flops(task.model.config, length or task.manifest["max_length"], tune, classes)
    return peak * accelerator.num_processes * task.tokens_per_row / (task.sequences * flops)


def clear(folder: Path) -> None:
    """Set the run in a folder aside, or several of other seeds or rates; what else lies in the folder stays."""
    if set_aside(folder):
        print(f"The run that was there stays in {folder / ASIDE} until this one has its first checkpoint.")


def settle_folders(start: Start) -> None:
    """Give what a kill has left under another name its own; a draft of the checkpoint that is resumed, too."""
    for name in ("model", "last", "adapter"):
        if (found := find_folder(start.folder / name)) != start.folder / name:
            found.replace(start.folder / name)
    if start.resume_from is not None:
        adopt(start.resume_from)


def remove_folder(folder: Path) -> None:
    """Remove a model folder of ours, but no file in it that is not ours; of a link not what it points to."""
    if folder.is_symlink():
        remove(folder)
    else:
        remove_files(folder, is_whole_file)


def _sample(task: Task, model) -> str:
    # A model that has diverged writes nothing.
    try:
        return task.sample(model)
    except ValueError as error:
        return f"(no sample: {error})"


@contextmanager
def uncompiled(model) -> Iterator[None]:
    """Without torch.compile, which would compile again for an evaluation and each length of what is generated."""
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled


def _rates(run: Run, steps: int) -> dict[str, Any]:
    peak = peak_rate(run)
    return {
        "peak": peak,
        "floor": peak / 10 if run.min_learning_rate is None else run.min_learning_rate,
        "warmup_steps": min(100, steps // 20) if run.warmup_steps is None else run.warmup_steps,
        "shape": run.schedule,
    }


def _unprefixed(line: dict[str, Any] | None, prefix: str = "eval_") -> dict[str, float] | None:
    found = {name.removeprefix(prefix): value for name, value in (line or {}).items() if name.startswith(prefix)}
    return found or None


def _model_files(task: Task) -> dict[str, bytes]:
    # What a model folder has beside its weights: config, generation config, code, tokenizer.
    with tempfile.TemporaryDirectory() as folder, quiet():
        task.model.save_pretrained(folder, state_dict={})
        task.tokenizer.save_pretrained(folder)
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.suffix != ".safetensors"]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def _save_model(accelerator, model, tokenizer, folder: Path, save: Callable, step: int) -> None:
    # A loadable folder: weights, config, generation config, code, tokenizer. Whole or not at all. With LoRA, the
    # merged model; and what was learned alone in adapter/, that of model/.
    sharded = accelerator.distributed_type == DistributedType.FSDP
    tensors = {"state_dict": whole_weights(model)} if sharded else {}  # on every process
    whole = accelerator.unwrap_model(model)

    def write(target: Path, save_weights: Callable[[Path], Any]) -> None:
        if accelerator.is_main_process:
            draft = target.with_name(DRAFT + target.name)
            remove(draft)
            save_weights(draft)
            tokenizer.save_pretrained(draft)
            (draft / STEP).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
            replace_folder(draft, target)

    def save_weights(draft: Path) -> None:
        merged = {"state_dict": merged_state(whole)} if has_lora(whole) else tensors
        whole.save_pretrained(draft, **merged)
        with torch.device("meta"):
            plain = type(whole)._from_config(whole.config) if has_lora(whole) else whole
        check_written(sorted(draft.glob("*.safetensors")), tensor_shapes(plain))

    if has_lora(whole) and folder.name == "model":
        save("adapter/", lambda: write(folder.with_name("adapter"), partial(save_adapter, whole)))
    save(f"{folder.name}/", lambda: write(folder, save_weights))


def _load_best(accelerator, model, prepared, folder: Path):
    # The prepared model with the weights of model/; LoRA's are merged there, so that they need a model of their own.
    best = load_complete(type(model), folder, attn_implementation=model.config._attn_implementation)
    if has_lora(model):
        return accelerator.prepare_model(best, evaluation_mode=True)
    load_weights(prepared, best.state_dict())
    return prepared


def _draw(accelerator, folder: Path, run: Run, task: Task) -> None:
    metrics = read_metrics(folder / "metrics.jsonl") if accelerator.is_main_process else []
    if metrics:
        model, dataset = (Path(name).name for name in (run.model or run.preset or "tiny", run.dataset))
        task.draw(metrics, folder / "loss.png", title=shown(f"{model} on {dataset}"))


def _write_evaluation(
    run: Run, task: Task, folder: Path, progress: Progress, test, tables: dict[str, Any], last_is_best: bool
) -> dict[str, dict[str, float]]:
    by_step = {line["step"]: line for line in read_metrics(folder / "metrics.jsonl") if "eval_loss" in line}
    chosen = progress.step if last_is_best else progress.best_step
    results = {
        **{f"before/{split}": _unprefixed(by_step.get(0), PREFIXES[split]) for split in ("validation", "test")},
        "train": _unprefixed(by_step.get(chosen), PREFIXES["seen"]),
        "validation": _unprefixed(by_step.get(chosen)),
        "test": test,
    }
    results = {name: values for name, values in results.items() if values is not None}
    content = {
        "format_version": 1,
        "protocol": {
            "model": "model/",
            "step": chosen,
            "chosen_by": "last step" if last_is_best else "lowest validation loss",
            "eval_batches": run.eval_batches,
            **task.facts,
        },
        "results": results,
        "tables": {"test": tables} if tables else {},
    }
    write_text(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
    return results


def _farewell(run: Run, task: Task, progress: Progress, steps: int, results: dict[str, dict[str, float]]) -> str:
    folder = run.output_dir
    end = f"{progress.step} steps, {progress.tokens:,} tokens"
    if progress.stopped_early:
        end += f" (stopped before step {steps})"
    if "test" in results:
        before = results.get("before/test", {})
        scores = (
            f"{name} {value:.4f}{f' (before {before[name]:.4f})' if name in before else ''}"
            for name, value in results["test"].items()
        )
        end += f". On the test split: {', '.join(scores)}"
    then = "".join(f"\n  {command.format(folder=folder)}" for command in task.next_steps)
    alone = f"\n  {folder}/adapter          what LoRA learned, alone: peft loads it on its base"
    adapter = alone if run.tune == "lora" else ""
    return f"""
{end}. Written:
  {folder}/model            weights, config, code and tokenizer: any Hugging Face client loads it{adapter}
  {folder}/loss.png         the picture of this run
  {folder}/metrics.jsonl    every number of it; evaluation.json has the last ones, run.yaml how it was made
Next:{then}"""
