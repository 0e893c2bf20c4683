"""Estimate the cost of a run before any data or weights are read (--plan). Not a recipe itself."""

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTForSequenceClassification
from scratch_gpt.conversion.load import with_fused_gelu
from scratch_gpt.data.manifest import is_prepared, read_manifest
from scratch_gpt.tokenization.tokenizer import count_ids, load_tokenizer
from scratch_gpt.train.accelerator import best_attention, describe_device, make_accelerator
from scratch_gpt.train.batches import BatchLayout
from scratch_gpt.train.costs import (
    Memory,
    Tune,
    all_parameters,
    compute_optimal_tokens,
    memory,
    rehearsal_shape,
    row_flops,
    step_seconds,
    trained_parameters,
)
from scratch_gpt.train.machine_probe import bandwidth, matmul_rate, rehearse
from scratch_gpt.train.optimizers import make_optimizer
from scratch_gpt.utils.foreign import one_error
from scratch_gpt.utils.loading import ADAPTER_CONFIG
from scratch_gpt.utils.wording import duration, plural
from scratch_gpt_training.support.command_line import parse_overrides
from scratch_gpt_training.support.options import Run, dropout_changes, trains_tokenizer, vocabulary_size
from scratch_gpt_training.support.run.defaults import EPOCHS
from scratch_gpt_training.support.run.models import check_memory, small_preset


READING = 2**26  # bytes that remain in use after reading and tokenizing a text; more if the data are held in memory
PROBED = 0.4  # maximum seconds of matrix products in one timed step of the probe


class TrainingPlan(NamedTuple):
    """The cost of a run; times cover training only and assume that every row is full."""

    device: str
    processes: int
    threads: int
    precision: str
    matmul_rate: float  # FLOP/s of one process
    bandwidth: float  # bytes/s
    parameters: int
    trained: int
    step_tokens: int
    step_flops: int
    step_seconds: float
    tokens: int | None  # of the run, if its length does not depend on the data
    memory: Memory
    program: int  # bytes of Python, its libraries and the memory for reading data
    peak: int  # bytes of a process
    notices: list[str]


def read_config(run: Run, classes: int | None) -> tuple[ScratchGPTConfig, int, int | None]:
    """Return the model's config, the number of tokens per row, and the rows of an epoch if known."""
    changes: dict[str, Any] = {**dropout_changes(run)}
    prepared = read_manifest(run.dataset) if classes is None and is_prepared(run.dataset) else None
    length = run.max_length if prepared is None else prepared["max_length"]
    rows = None if prepared is None else prepared["splits"]["train"].get("rows")
    if run.model is not None:
        if (Path(run.model) / ADAPTER_CONFIG).exists():
            raise ValueError(f"--model {run.model} is an adapter. Give the model that it adapts.")
        with one_error(f"--model {run.model}: its config cannot be read"):
            values, _ = ScratchGPTConfig.get_config_dict(run.model, revision=run.model_revision)
            if values.get("model_type") != ScratchGPTConfig.model_type:
                raise ValueError(f"it is a {values.get('model_type')}, and only GPT-2 shaped models can be trained.")
            config = ScratchGPTConfig.from_dict(values)  # updated afterwards, because GPT-2 files use other names
            config.update(with_fused_gelu(values, changes))
    else:
        if prepared is not None:
            changes["vocab_size"] = prepared["tokenizer"]["vocab_size"]
        elif trains_tokenizer(run):
            changes["vocab_size"] = vocabulary_size(run)
        else:
            changes["vocab_size"] = count_ids(load_tokenizer(run.tokenizer or ""))
        changes |= {} if length is None else {"max_position_embeddings": length}
        overrides = parse_overrides(run.config_overrides, ScratchGPTConfig)
        config = ScratchGPTConfig.from_preset(run.preset or "tiny", **{**changes, **overrides})
    context = config.max_position_embeddings
    if length is not None and length > context:
        raise ValueError(f"--max-length {length} is more than the model's context, {context} tokens.")
    return config, length or context, rows


def make_plan(run: Run, classes: int | None = None, sequences: int = 1) -> TrainingPlan:
    """Compute a run's cost, with a probe of this machine that takes about two seconds.

    Args:
        classes: number of a classifier's classes.
        sequences: number of texts per row of data.
    """
    if run.quantize_base != "no":
        raise ValueError("A plan assumes a base in 32 bits: remove --quantize-base.")
    config, length, rows = read_config(run, classes)
    tune = Tune(run.tune, run.lora_rank, run.lora_targets)
    accelerator = make_accelerator(run.device, run.mixed_precision, run.expect_processes)
    device, precision, processes = accelerator.device, accelerator.mixed_precision, accelerator.num_processes
    attention = best_attention(device.type, precision, length)
    per_batch = sequences * run.batch_size
    load_what_a_run_loads()
    rate = matmul_rate(device, precision)
    program = psutil.Process().memory_info().rss + READING
    estimate = memory(
        config,
        per_batch,
        length,
        half=precision != "no",
        flash=attention == "sdpa",
        on_cpu=device.type == "cpu",
        recompute=run.gradient_checkpointing,
        accumulates=run.accumulation_steps > 1,
        processes=processes,
        tune=tune,
        classes=classes,
        optimizer=run.optimizer,
    )
    shape = rehearsal_shape(per_batch, length, config, rate * PROBED)
    small = small_model(run, config, attention, device, shape, classes)
    rehearsal = rehearse(*small, *shape, precision, run.optimizer)
    seconds = step_seconds(config, rehearsal, per_batch, length, run.accumulation_steps, tune, classes)
    batch = BatchLayout(run.batch_size, run.accumulation_steps, processes).global_batch
    return TrainingPlan(
        device=describe_device(device),
        processes=processes,
        threads=torch.get_num_threads(),
        precision="fp32" if precision == "no" else precision,
        matmul_rate=rate,
        bandwidth=bandwidth(device),
        parameters=all_parameters(config, classes),
        trained=trained_parameters(config, tune, classes),
        step_tokens=batch * sequences * length,
        step_flops=batch * sequences * row_flops(config, length, tune, classes),
        step_seconds=seconds,
        tokens=count_tokens(run, batch, sequences * length, rows),
        memory=estimate,
        program=program,
        peak=program + estimate.peak,
        notices=small_preset(run, config, classes),
    )


def load_what_a_run_loads() -> None:
    """Import the modules of a run, so that this process has a run's size; an optimizer, too, loads parts of torch."""
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    from scratch_gpt_training.support.run import runner  # noqa: F401

    make_optimizer(torch.nn.Linear(1, 1), 1e-4, 0.1)


def small_model(run: Run, config: ScratchGPTConfig, attention: str, device, shape: tuple[int, int], classes):
    """Return a model of two blocks with constant weights, and a function that computes its loss on such rows."""
    kind = ScratchGPTForCausalLM if classes is None else ScratchGPTForSequenceClassification
    two = ScratchGPTConfig.from_dict({**config.to_dict(), "num_hidden_layers": 2, "num_labels": classes or 2})
    check_memory(run, two, classes)
    with torch.device("meta"):
        model = kind._from_config(two, attn_implementation=attention)
    model = model.to_empty(device=device).train()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.02)
    if classes is None:
        model.tie_weights()
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.arange(math.prod(shape), device=device).view(shape) % config.vocab_size

    def loss(model) -> torch.Tensor:
        if classes is None:
            return model(ids, shift_labels=ids, use_cache=False).loss
        return model(ids, use_cache=False).logits.float().logsumexp(-1).sum()

    return model, loss


def count_tokens(run: Run, batch: int, tokens_per_row: int, rows: int | None) -> int | None:
    """Return the tokens of the run, from the smallest of its limits that need no data; None without such limits."""
    limits = []
    if run.max_steps is not None:
        limits.append(run.max_steps)
    if run.max_tokens is not None:
        limits.append(math.ceil(run.max_tokens / (batch * tokens_per_row)))
    if rows is not None and (run.epochs is not None or not limits):
        limits.append(math.ceil((run.epochs or EPOCHS) * rows / batch))
    return min(limits) * batch * tokens_per_row if limits else None


# --- As text -----------------------------------------------------------------------------------------------------


def print_plan(run: Run, classes: int | None = None, sequences: int = 1) -> None:
    """Print the cost of the run, on the main process."""
    plan = make_plan(run, classes, sequences)
    if int(torch.distributed.is_initialized() and torch.distributed.get_rank()) == 0:
        sys.stdout.write(format_plan(plan, run))


def format_plan(plan: TrainingPlan, run: Run) -> str:
    """Format a plan as lines of text."""
    estimate = plan.memory
    trained = "all" if plan.trained == plan.parameters else f"{plan.trained:,}"
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    split = ", ".join(f"{name} {gigabytes(getattr(estimate, name))}" for name in parts)
    best = compute_optimal_tokens(plan.parameters)
    rows = [("a step", plan.step_tokens)]
    if plan.tokens is not None:
        rows.append(("this run", plan.tokens))
    rows.append(("compute-optimal", best))
    devices = f"{run.plan_devices} of {run.plan_tflops:g} TFLOP/s" if run.plan_tflops is not None else ""
    table = [f"{'':>16} {'tokens':>18} {'FLOPs':>9} {'here':>14}  {devices}"]
    for name, tokens in rows:
        flops = plan.step_flops / plan.step_tokens * tokens
        seconds = plan.step_seconds / plan.step_tokens * tokens
        planned = "" if run.plan_tflops is None else duration(flops / (run.plan_devices * run.plan_tflops * 1e12))
        table.append(f"{name:>16} {tokens:>18,} {flops:>9.1e} {duration(seconds):>14}  {planned}".rstrip())
    rate = plan.step_flops / plan.step_seconds / 1e9
    length_hint = ""
    if not plan.tokens:
        length_hint = (
            "\nThe length of the run depends on the data, which are not read. Give --max-steps or --max-tokens."
        )
    notices = "".join(f"{notice}\n" for notice in plan.notices)
    launch = f"{plural(plan.processes, 'process', 'processes')} of {plural(plan.threads, 'thread')}"
    return f"""Plan: no data are read, nothing is trained.
{notices}Model: {plan.parameters:,} parameters, trained: {trained}
This machine: {plan.device}, {launch}, {plan.precision}: matrix \
products {plan.matmul_rate / 1e9:,.0f} GFLOP/s, memory {plan.bandwidth / 1e9:,.0f} GB/s
Memory of a process: {gigabytes(plan.peak)} GB at its peak ({split}, program {gigabytes(plan.program)})
{chr(10).join(table)}
Times cover training only and assume that every row is full: {rate:,.0f} GFLOP/s here. About 20 tokens per parameter \
are compute-optimal from scratch (Hoffmann et al. 2022).{length_hint}
"""


def gigabytes(size: float) -> str:
    """Format bytes as GB of 10 ** 9."""
    return f"{size / 1e9:,.2f}"


__all__ = ["make_plan", "print_plan"]
