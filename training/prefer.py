# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Tune an instruction-tuned model on preferences: which of two answers is better, or whether an answer is good.

    accelerate launch training/prefer.py [--config FILE.yaml] [--field value ...]

Rows have prompt, chosen and rejected (texts or messages; instruction and input can replace prompt), or for KTO also
prompt, completion and label. The reference is the model before its first step. Its log-probabilities are computed once
and kept in output_dir/references.safetensors.

The recipe writes output_dir/model (weights, config, code, tokenizer), loss.png, metrics.jsonl, evaluation.json,
run.yaml, manifest.json and checkpoints/; with --seeds N in folders seed-0/ and so on.
"""

from dataclasses import dataclass
from typing import Any, Literal

from scratch_gpt_training.support.options import Run, missed_shares, option, unused_options
from scratch_gpt_training.support.run.recipe import run_recipe


DEFAULT_DATASET, DEFAULT_MODEL = "trl-lib/ultrafeedback_binarized", "openai-community/gpt2"
SAMPLED, SAMPLED_TOKENS = 32, 32  # sampled answers per split for measuring the model's drift, and tokens of each
DEFAULT_BETAS = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}


@dataclass(frozen=True)
class PreferRun(Run):
    """Preference tuning."""

    COMMON = ("loss_type", "beta")
    NOT_SWEPT = ("max_length",)  # rows without room for an answer are dropped

    output_dir: str = option("runs/prefer", "Folder of the run; one that holds files is refused without --overwrite.")
    model: str = option(DEFAULT_MODEL, "Folder or Hub id of the model to tune, preferably one tuned on instructions.")
    dataset: str = option(DEFAULT_DATASET, "Preferences: a file, folder or glob, or a Hub dataset id.")
    dropout: float | None = option(
        0.0, "Probability of all three dropouts; 0 makes the model equal its reference at the start."
    )
    validation_fraction: float = option(0.05, "Fraction of the rows that is held out for validation.")
    test_fraction: float = option(0.1, "Fraction of the rows that is scored before training and at the end.")
    learning_rate: float | None = option(
        None, "Peak of the schedule; by default 5e-6 at GPT-2's width (LoRA: 5e-5), more for narrower models."
    )
    loss_type: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = option("dpo", "Loss of a preference.")
    beta: float | None = option(None, "Strength of the tie to the reference model; by default 0.1, for SimPO 2.")
    simpo_gamma: float = option(0.5, "SimPO's target margin between the chosen and the rejected answer.")
    prompt_format: str | None = option(
        None, "Format of prompts: alpaca, book, chatml, phi3, plain or tokenizer; by default the model's, else alpaca."
    )
    seeds: int = option(1, "Train N times with seeds seed, seed + 1, ...; model/ is the first one's.")


def build(run: PreferRun):
    """Return the task: pairs, or judged answers, in splits that share no prompt, and the model to tune."""
    from functools import partial

    from scratch_gpt.data.rows.collate import collate_preferences
    from scratch_gpt.train.objectives import Objective
    from scratch_gpt.train.preference_losses import Preference
    from scratch_gpt.utils.plots import plot_classification
    from scratch_gpt_training.support.run.data import add_seen
    from scratch_gpt_training.support.run.models import row_length
    from scratch_gpt_training.support.run.setup import apply_tune
    from scratch_gpt_training.support.run.task import Hooks, Task

    splits, source, notices, left_out = read_splits(run)
    tokenizer, model, changes = start_model(run)
    max_length = row_length(run, model)
    notices += [*changes, *apply_tune(run, model)]
    rows, manifest = make_rows(run, splits, source, left_out, tokenizer, max_length)
    add_seen(rows, run.seed)
    objective = Preference(
        run.loss_type, DEFAULT_BETAS[run.loss_type] if run.beta is None else run.beta, run.simpo_gamma
    )
    samples = {}  # held-out split: the model's own answers before the first step

    task = Task(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=partial(collate_preferences, pad_token_id=tokenizer.pad_token_id, max_length=max_length),
        objective=Objective(objective.counts, objective.sums, objective.baselines),
        measure=partial(measure, objective, samples),
        tokens_per_row=manifest["splits"]["train"]["asked"] / len(rows["train"]),
        manifest=manifest,
        description=describe_data(run, manifest, objective.beta),
        next_steps=("generate {folder}/model --chat",),
        group_by_length=True,
        notices=notices,
        sequences_per_row=1 if run.loss_type == "kto" else 2,
    )
    hooks = Hooks(plot=plot_classification, before_training=partial(give_references, run, objective, task, samples))
    return task._replace(hooks=hooks)


def read_splits(run: PreferRun):
    """Return the pairs or judged answers of each split, their source, notices, and the counts of unused rows."""
    from functools import partial

    from scratch_gpt.data.columns import PREFERENCES
    from scratch_gpt.data.rows.preferences import prompt_of, read_preferences
    from scratch_gpt_training.support.run.data import read_by_prompt

    read = partial(read_preferences, judged=run.loss_type == "kto")
    splits, source, notices, left_out = read_by_prompt(run, PREFERENCES, read, prompt_of)
    notices += missed_shares(run, {name: len(part) for name, part in splits.items()}, "rows")
    return splits, source, notices, left_out


def start_model(run: PreferRun):
    """Return the tokenizer and model, which both keep the format, and notices for the user."""
    from scratch_gpt.tokenization.tokenizer import load_tokenizer
    from scratch_gpt_training.support.run.models import build_chat_lm

    tokenizer: Any = load_tokenizer(run.model, run.model_revision)
    return tokenizer, *build_chat_lm(run, tokenizer)


def make_rows(
    run: PreferRun, splits, source, left_out, tokenizer, max_length: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rows of each split, and the manifest."""
    from functools import partial

    from scratch_gpt.data.manifest import make_manifest
    from scratch_gpt.data.rows.conversations import encode_conversations
    from scratch_gpt.data.rows.preferences import PreferenceRows
    from scratch_gpt.tokenization.tokenizer import tokenizer_facts

    rows = {}
    for name, part in splits.items():
        try:
            rows[name] = PreferenceRows(part, partial(encode_conversations, tokenizer), max_length, run.seed)
        except ValueError as error:
            raise ValueError(f"{run.dataset}, {name} split: {error}") from error
    records = {name: part.facts() for name, part in rows.items()}
    facts = tokenizer_facts(tokenizer)
    manifest = make_manifest("prefer", [source], records, tokenizer=facts, max_length=max_length, left_out=left_out)
    return rows, manifest


def measure(objective, samples, model, batches, reduce, split):
    """Return the metrics of a split, and the model's divergence from its reference on it."""
    from scratch_gpt.evaluation.preferences import preference_metrics
    from scratch_gpt.evaluation.reference_kl import kl_from_reference

    metrics = preference_metrics(model, batches, objective, reduce)
    if split in samples:
        metrics["kl_from_reference"] = kl_from_reference(model, samples[split])
    return metrics, {}


def give_references(run: PreferRun, objective, task, samples, accelerator, folder, save) -> None:
    """Give the task the reference model's outputs, computed before the first step or read from output_dir.

    The rows get the log-probabilities of their answers, `samples` gets the model's own answers to held-out prompts.
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
    """Describe the loss, the splits, and the rows that are not used."""

    from scratch_gpt.utils.wording import plural

    lines = [f"Loss: {run.loss_type} with beta {beta:g}. No prompt is in two splits."]
    for name, facts in manifest["splits"].items():
        parts = [plural(facts["rows"], "answer" if "desirable" in facts else "pair")]
        if "desirable" in facts:
            parts.append(f"{facts['desirable']:,} of them desirable")
        parts.append(f"{facts['asked']:,} target tokens")
        if facts["cut"]:
            parts.append(f"{facts['cut']:,} cut to {manifest['max_length']} tokens")
        lines.append(f"{name:>10}: {', '.join(parts)}")
    reasons = {
        "empty": "with an empty answer",
        "equal": "with equal chosen and rejected answers",
        "dropped": "with a prompt that leaves no room for an answer",
    }
    counts = {
        text: manifest["left_out"].get(reason, 0) + sum(facts.get(reason, 0) for facts in manifest["splits"].values())
        for reason, text in reasons.items()
    }
    if any(counts.values()):
        parts = ", ".join(f"{plural(count, 'row')} {text}" for text, count in counts.items() if count)
        lines.append(f"Not used: {parts}.")
    return lines


def unused_fields(run: PreferRun) -> dict[str, str]:
    """Return the fields that this run does not use, with the reasons."""
    unused = {
        "text_column": "rows have prompt, chosen and rejected, or prompt, completion and label",
        "sample_prompt": "no sample is written",
        **unused_options(run),
    }
    if run.loss_type != "simpo":
        unused["simpo_gamma"] = "it needs --loss-type simpo"
    return unused


def check_preferences(run: PreferRun) -> None:
    """Raise a ValueError for options that this recipe cannot combine."""
    if run.streaming:
        raise ValueError("The reference is computed for all rows before the first step: remove --streaming.")
    if run.model is None or run.preset is not None or run.tokenizer is not None:
        raise ValueError(
            "Preference tuning needs an instruction-tuned model. Give --model, which brings its size and tokenizer."
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
