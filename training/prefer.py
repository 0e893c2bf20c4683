# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Answers of which one is better and a model that answers -> a model that prefers the better ones.

    accelerate launch training/prefer.py [--config FILE.yaml] [--field value ...]

Rows are prompt, chosen, rejected (texts or messages; instruction and input for a prompt do as well), or for KTO also
prompt, completion, label. What the model says before its first step is the reference: it is asked once and kept in
output_dir/references.safetensors. Writes output_dir/model (weights, config, code, tokenizer), loss.png, metrics.jsonl,
evaluation.json, run.yaml, manifest.json and checkpoints/; with --seeds N a folder seed-0/ ... each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from scratch_gpt_training.support.options import Run, dataset_location, missed_shares, option, unused_options
from scratch_gpt_training.support.run.recipe import run_recipe


DEFAULT_DATASET, DEFAULT_MODEL = "trl-lib/ultrafeedback_binarized", "openai-community/gpt2"
SAMPLED, SAMPLED_TOKENS = 32, 32  # answers of its own that the model's drift is measured on, and tokens of each
DEFAULT_BETAS = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}


@dataclass(frozen=True)
class PreferRun(Run):
    """Preference tuning."""

    output_dir: str = option("runs/prefer", "Folder to write; one that holds a run is refused without --overwrite.")
    model: str = option(DEFAULT_MODEL, "Folder or Hub id of the model that answers: best one that was instructed.")
    dataset: str = option(DEFAULT_DATASET, "A file, folder or glob, or a Hub dataset id.")
    dropout: float | None = option(0.0, "All three dropouts; 0, so that the model begins as its own reference.")
    validation_fraction: float = option(0.05, "Share of the rows that is held out to evaluate on.")
    test_fraction: float = option(0.1, "Share that is scored once before the first step and once at the end.")
    learning_rate: float | None = option(5e-6, "Peak of the schedule; LoRA wants ten times as much.")
    loss_type: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = option("dpo", "What is lost on a preference.")
    beta: float | None = option(None, "How strongly the model is held to its reference: 0.1, and SimPO's scale 2.")
    simpo_gamma: float = option(0.5, "SimPO: by how much the chosen answer is to be better.")
    prompt_format: str | None = option(
        None, "alpaca, chatml, phi3, plain or tokenizer; by default what the model was trained with, else alpaca."
    )
    seeds: int = option(1, "Train so many times, with seed, seed + 1, ...; model/ is the first one's.")


def build(run: PreferRun):
    """Pairs, or judged answers, in splits that share no prompt, and the model that learns from them."""
    from functools import partial

    from torch.utils.data import Subset

    from scratch_gpt.data.columns import PREFERENCES
    from scratch_gpt.data.manifest import make_manifest
    from scratch_gpt.data.rows.collate import collate_preferences
    from scratch_gpt.data.rows.conversations import encode_conversations
    from scratch_gpt.data.rows.preferences import PreferenceRows, prompt_of, read_preferences
    from scratch_gpt.data.sources.documents import open_rows
    from scratch_gpt.data.splits import split_groups
    from scratch_gpt.evaluation.preferences import preference_metrics
    from scratch_gpt.evaluation.reference_kl import kl_from_reference
    from scratch_gpt.tokenization.tokenizer import check_vocabulary, count_ids, fingerprint, load_tokenizer
    from scratch_gpt.train.batches import epoch_order
    from scratch_gpt.train.objectives import Objective
    from scratch_gpt.train.preference_losses import Preference
    from scratch_gpt.utils.plots import plot_classification
    from scratch_gpt_training.support.run.models import build_chat_lm
    from scratch_gpt_training.support.run.setup import apply_tune
    from scratch_gpt_training.support.run.task import Hooks, Task

    where = dataset_location(run)
    table, source, notices = open_rows(*where, PREFERENCES)
    try:
        items, left_out = read_preferences(cast(Iterable[Mapping[str, Any]], table), judged=run.loss_type == "kto")
    except ValueError as error:
        raise ValueError(f"{run.dataset}: {error}") from error
    parts = split_groups([*map(prompt_of, items)], run.validation_fraction, run.test_fraction, run.seed)
    tokenizer: Any = load_tokenizer(run.model, run.model_revision)
    model, changes = build_chat_lm(run, tokenizer)
    notices += [*changes, *apply_tune(run, model)]
    notices += missed_shares(run, {name: len(numbers) for name, numbers in parts.items()}, "rows")
    check_vocabulary(tokenizer, model.config.vocab_size)
    max_length = run.max_length or model.config.max_position_embeddings
    encode = partial(encode_conversations, tokenizer)
    rows = {}
    for name, numbers in parts.items():
        try:
            rows[name] = PreferenceRows([items[n] for n in numbers], encode, max_length, run.seed)
        except ValueError as error:
            raise ValueError(f"{run.dataset}, {name} split: {error}") from error
    records = {name: part.facts() for name, part in rows.items()}
    manifest = make_manifest(
        "prefer",
        [source],
        records,
        tokenizer={"fingerprint": fingerprint(tokenizer), "vocab_size": count_ids(tokenizer)},
        max_length=max_length,
        left_out=left_out,
    )
    objective = Preference(
        run.loss_type, DEFAULT_BETAS[run.loss_type] if run.beta is None else run.beta, run.simpo_gamma
    )
    samples = {}  # of held-out splits: what the model answers itself before the first step
    if "validation" in rows:
        numbers = epoch_order(len(rows["train"]), run.seed, 0)[: len(rows["validation"])]
        rows["seen"] = Subset(rows["train"], numbers)

    def measure(model, batches, reduce, split):
        metrics = preference_metrics(model, batches, objective, reduce)
        if split in samples:
            metrics["kl_from_reference"] = kl_from_reference(model, samples[split])
        return metrics, {}

    task = Task(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=partial(collate_preferences, pad_token_id=tokenizer.pad_token_id, max_length=max_length),
        objective=Objective(objective.counts, objective.sums, objective.baselines),
        measure=measure,
        tokens_per_row=records["train"]["asked"] / len(rows["train"]),
        manifest=manifest,
        description=describe_data(run, manifest, objective.beta),
        next_steps=("generate {folder}/model --chat",),
        group_by_length=True,
        notices=notices,
        sequences_per_row=1 if run.loss_type == "kto" else 2,
    )
    hooks = Hooks(plot=plot_classification, before_training=partial(give_references, run, objective, task, samples))
    return task._replace(hooks=hooks)


def give_references(run: PreferRun, objective, task, samples, accelerator, folder, save) -> None:
    """Let the task know what its model says before the first step, computed now or as output_dir has it.

    The rows get the log-probabilities of their answers, `samples` the model's own answers to held-out prompts.
    """
    import torch

    from scratch_gpt.evaluation.reference_kl import sample_answers
    from scratch_gpt.train.accelerator import uncompiled
    from scratch_gpt.train.batches import to_device
    from scratch_gpt.train.reference_logps import (
        REFERENCES_FILE,
        read_references,
        reference_key,
        reference_logps,
        write_references,
    )

    model = task.model
    splits = {name: part for name, part in task.rows.items() if name != "seen"}
    hashes = {name: facts["sha256"] for name, facts in task.manifest["splits"].items()}
    key = reference_key(model, hashes | {"needs_reference": str(objective.needs_reference)})
    references = read_references(folder / REFERENCES_FILE, key)
    if references is None:
        accelerator.print("Computing the reference model's log-probabilities (once, before training) ...")
        references = {}
        for name, part in splits.items():
            if objective.needs_reference:
                references[name] = reference_logps(accelerator, model, part, task.collate, run.batch_size)
            prompts = part.prompts(SAMPLED, SAMPLED_TOKENS) if name != "train" else []
            if prompts:
                with accelerator.autocast(), uncompiled(model.to(accelerator.device)):
                    answers = sample_answers(model, prompts, task.tokenizer.eos_token_id, SAMPLED_TOKENS, run.seed)
                references |= {f"{name}.{field}": tensor.cpu().numpy() for field, tensor in answers.items()}
        save(
            REFERENCES_FILE,
            lambda: (
                write_references(folder / REFERENCES_FILE, references, key) if accelerator.is_main_process else None
            ),
        )
    for name, part in splits.items():
        part.reference_logps = references.get(name)
        fields = {key.partition(".")[2]: value for key, value in references.items() if key.startswith(f"{name}.")}
        if fields:
            samples[name] = to_device({k: torch.from_numpy(v) for k, v in fields.items()}, accelerator.device)


def describe_data(run: PreferRun, manifest: dict, beta: float) -> list[str]:
    """Describe the loss, the splits, and the rows that were left out."""
    lines = [f"Loss: {run.loss_type} with beta {beta:g}. No prompt is in two splits."]
    for name, facts in manifest["splits"].items():
        kind = f"answers, {facts['desirable']:,} of them desirable" if "desirable" in facts else "pairs"
        lines.append(
            f"{name:>10}: {facts['rows']:,} {kind}, {facts['asked']:,} target tokens, {facts['cut']:,} cut at "
            f"{manifest['max_length']} tokens"
        )
    reasons = {
        "empty": "with an empty answer",
        "equal": "whose chosen answer equals the rejected one",
        "dropped": "whose prompt leaves no room for an answer",
    }
    counts = {
        text: manifest["left_out"].get(reason, 0) + sum(facts.get(reason, 0) for facts in manifest["splits"].values())
        for reason, text in reasons.items()
    }
    if any(counts.values()):
        parts = ", ".join(f"{count:,} rows {text}" for text, count in counts.items() if count)
        lines.append(f"Left out: {parts}.")
    return lines


def unused_fields(run: PreferRun) -> dict[str, str]:
    """Return the fields that nothing in this run reads, and why."""
    unread = {
        "text_column": "rows have prompt, chosen and rejected, or prompt, completion and label",
        "sample_prompt": "no sample is written",
        **unused_options(run),
    }
    if run.loss_type != "simpo":
        unread["simpo_gamma"] = "it needs --loss-type simpo"
    return unread


def check_preferences(run: PreferRun) -> None:
    """Raise a ValueError for what this recipe cannot do."""
    if run.streaming:
        raise ValueError("The reference is computed for all rows before the first step: leave --streaming out.")
    if run.model is None or run.preset is not None or run.tokenizer is not None:
        raise ValueError(
            "Preference tuning needs a model that answers already: give --model, which brings its size and tokenizer."
        )
    if run.beta == 0:
        raise ValueError("--beta must be above 0 (you gave 0).")


def main(argv: list[str] | None = None) -> None:
    run_recipe(
        PreferRun,
        argv,
        build,
        check_preferences,
        unused_fields,
        plan_shape=lambda run: {"sequences": 1 if run.loss_type == "kto" else 2},
    )


if __name__ == "__main__":
    main()
