# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Instructions with their answers and a base model -> a model that follows instructions.

    accelerate launch training/instruct.py [--config FILE.yaml] [--field value ...]
    python training/instruct.py --dataset FILE.json --preview 3

Without arguments: GPT-2 learns the 52,000 instructions of tatsu-lab/alpaca. Writes output_dir/model (weights, config,
code, tokenizer with the one chat template it was trained with), responses.json (the test split's answers before and
after, beside the references), loss.png, metrics.jsonl, evaluation.json, run.yaml, manifest.json and checkpoints/; with
--seeds N a folder seed-0/ ... each.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from scratch_gpt_training.support.options import Run, dataset_location, missed_shares, option, unused_options
from scratch_gpt_training.support.run.recipe import run_recipe


DEFAULT_DATASET, DEFAULT_MODEL = "tatsu-lab/alpaca", "openai-community/gpt2"


@dataclass(frozen=True)
class InstructRun(Run):
    """Instruction tuning."""

    output_dir: str = option("runs/instruct", "Folder to write; one that holds a run is refused without --overwrite.")
    model: str | None = option(None, f"Folder or Hub id to start from; {DEFAULT_MODEL} where there is no --preset.")
    dataset: str = option(DEFAULT_DATASET, "A file, folder or glob, or a Hub dataset id.")
    prompt_format: str | None = option(
        None,
        "alpaca, chatml, phi3, plain or tokenizer (the model's own); by default its own, else alpaca.",
    )
    train_on: Literal["completion", "prompt+completion"] = option("completion", "What is asked: the answers, or all.")
    pack: bool = option(False, "Several conversations a row that see nothing of each other, instead of one.")
    preview: int | None = option(None, "Print so many rows, what is asked colored, and train nothing.")
    validation_fraction: float = option(0.05, "Share of the rows that is held out to evaluate on.")
    test_fraction: float = option(0.1, "Share that is scored and answered before the first step and at the end.")
    answers: int | None = option(None, "Questions of the test split that are answered; by default all.")
    max_new_tokens: int = option(128, "Tokens of an answer at most.")
    keep_best: bool = option(True, "model/ is the best by validation loss, and last/ the last, where they differ.")
    seeds: int = option(1, "Train so many times, with seed, seed + 1, ...; model/ is the first one's.")


def build(run: InstructRun):
    """Conversations in splits that share no question, as rows, and a model that keeps their format."""
    from functools import partial

    from scratch_gpt.data.filters.duplicates import contaminated_texts
    from scratch_gpt.data.manifest import make_manifest
    from scratch_gpt.data.rows.collate import collate_rows
    from scratch_gpt.data.rows.conversations import (
        PromptRows,
        count_asked_bytes,
        encode_conversations,
        encode_prompt,
        of_both,
        text_of,
    )
    from scratch_gpt.evaluation.before_after import Examination
    from scratch_gpt.evaluation.losses import language_metrics, mean_losses
    from scratch_gpt.generation.generate import generate_answers
    from scratch_gpt.tokenization.tokenizer import check_vocabulary, count_ids, fingerprint
    from scratch_gpt.train.accelerator import uncompiled
    from scratch_gpt.train.objectives import causal_lm
    from scratch_gpt_training.support.run.setup import apply_tune
    from scratch_gpt_training.support.run.task import Hooks, Task

    splits, source, notices = read_splits(run)
    tokenizer, model, changes = start_model(run, splits["train"])
    notices += changes
    check_vocabulary(tokenizer, model.config.vocab_size)
    max_length = run.max_length or model.config.max_position_embeddings
    rows, records = {}, {}
    for name, conversations in splits.items():
        rows[name] = PromptRows(
            encode_conversations(tokenizer, conversations, None, run.train_on), max_length, run.pack
        )
        records[name] = {**rows[name].facts(), "asked_bytes": count_asked_bytes(tokenizer, rows[name])}
    tokenizer_facts = {"fingerprint": fingerprint(tokenizer), "vocab_size": count_ids(tokenizer)}
    manifest = make_manifest(
        "instruct",
        [source],
        records,
        tokenizer=tokenizer_facts,
        max_length=max_length,
        pack=run.pack,
        train_on=run.train_on,
    )
    notices += apply_tune(run, model)

    test = [splits["test"][k] for k in rows["test"].kept] if "test" in rows else []
    shared = contaminated_texts(
        *([text_of(of_both(conversation)) for conversation in part] for part in (test, splits["train"]))
    )
    if test:
        notices.append(
            f"Contamination: {len(shared)} of {len(test)} test rows share a run of 13 words with training rows."
            + (" evaluation.json has their numbers, and the scores without them." if shared else "")
        )
    exam = Examination(test[: run.answers], tokenizer, shared=shared, max_new_tokens=run.max_new_tokens)
    responses = Path(run.output_dir) / "responses.json"
    if run.resume is not None:
        exam.recall(responses)

    def measure(model, batches, reduce, split):
        loss = mean_losses(model, batches, causal_lm, reduce)["loss"]
        metrics = language_metrics(loss, records[split]["asked"] / records[split]["asked_bytes"])
        if split != "test":
            return metrics, {}
        metrics["contaminated"] = len(shared) / len(test)
        tables = {"contamination": {"words": 13, "rows": shared}} if shared else {}
        if exam.prompts:
            is_first, model = exam.last is None, getattr(model, "module", model)
            with uncompiled(model):  # every process answers all: none waits for another
                scores, without = exam.take(model)
            metrics |= scores
            if without:
                tables["contamination"]["without_them"] = without
            if is_first and os.environ.get("RANK", "0") == "0":
                exam.write(responses, is_over=False)  # for a run that is resumed
        return metrics, tables

    def extra_outputs(model, tables) -> dict[str, Callable[[Path], Any]]:
        return {"responses.json": exam.write}

    def sample_text(model) -> str:
        question = encode_prompt(tokenizer, splits["validation"][0])
        return "-> " + generate_answers(model, tokenizer, [question], temperature=0, max_new_tokens=40)[0]

    return Task(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=partial(collate_rows, pad_token_id=tokenizer.pad_token_id, max_length=max_length),
        objective=causal_lm,
        measure=measure,
        tokens_per_row=rows["train"].asked_per_row,
        manifest=manifest,
        description=describe_data(manifest),
        next_steps=("generate {folder}/model --chat",),
        group_by_length=not run.pack,
        notices=notices,
        hooks=Hooks(sample_text=sample_text, extra_outputs=extra_outputs if exam.prompts else None),
    )


def read_splits(run: InstructRun):
    """The conversations of each split, where they are from, and what to say of them."""
    from scratch_gpt.data.columns import CONVERSATIONS
    from scratch_gpt.data.rows.conversations import read_conversations, text_of
    from scratch_gpt.data.sources.documents import open_rows
    from scratch_gpt.data.splits import split_groups

    where = dataset_location(run)
    rows, source, notices = open_rows(*where, CONVERSATIONS)
    try:
        conversations, empty = read_conversations(cast(Iterable[Mapping[str, Any]], rows))
    except ValueError as error:
        raise ValueError(f"{run.dataset}: {error}") from error
    if empty:
        notices.append(f"Left out for an empty answer: {len(empty)} row(s), the first is row {empty[0]}.")
    questions = [text_of(conversation[:-1]) for conversation in conversations]
    parts = split_groups(questions, run.validation_fraction, run.test_fraction, run.seed)
    splits = {name: [conversations[n] for n in numbers] for name, numbers in parts.items()}
    notices += missed_shares(run, {name: len(numbers) for name, numbers in parts.items()}, "rows")
    return splits, source, notices


def start_model(run: InstructRun, train):
    """(tokenizer, model, what to say of them): of `model`, or new ones; the tokenizer keeps the format."""
    from scratch_gpt_training.support.run.models import build_chat_lm, open_tokenizer, small_preset, small_vocabulary

    tokenizer = open_tokenizer(run, (message["content"] for conversation in train for message in conversation))
    notices = small_vocabulary(run, tokenizer)
    model, changes = build_chat_lm(run, tokenizer)
    return tokenizer, model, [*notices, *small_preset(run, model.config), *changes]


def describe_data(manifest: dict) -> list[str]:
    """Describe the splits."""
    lines = ["No question is in two splits."]
    for name, facts in manifest["splits"].items():
        lines.append(
            f"{name:>10}: {facts['conversations']:,} conversations in {facts['rows']:,} rows, {facts['tokens']:,} "
            f"tokens, of which {facts['asked']:,} count for the loss; {facts['cut']:,} cut to "
            f"{manifest['max_length']} tokens; {facts['dropped']:,} dropped because the prompt alone is that long"
        )
    return lines


def preview(run: InstructRun) -> None:
    """Print the first training rows as they are learned; without `pack`, those that will be dropped too."""
    from scratch_gpt.data.rows.conversations import PromptRows, encode_conversations, show_asked
    from scratch_gpt.utils.foreign import shown

    splits, _, notices = read_splits(run)
    tokenizer, model, changes = start_model(run, splits["train"])
    print(shown("\n".join([*notices, *changes])))
    max_length = run.max_length or model.config.max_position_embeddings
    conversations = splits["train"] if run.pack else splits["train"][: run.preview]
    encoded = encode_conversations(tokenizer, conversations, None, run.train_on)
    groups = [[k] for k in range(len(encoded))]
    if run.pack:
        rows = PromptRows(encoded, max_length, pack=True)
        groups = [[rows.kept[k] for k in group] for group in rows.groups]
        if rows.dropped:
            print(f"Will be dropped: {rows.dropped:,} of {len(encoded):,} conversations, whose prompt fills a row.")
    length = max_length + 1  # the last token of a row is only a target, and the first is none
    for group in groups[: run.preview]:
        encoded_rows = [encoded[k] for k in group]
        parts = [(ids[:length], [False, *is_target[1:length]]) for ids, is_target in encoded_rows]
        targets = sum(sum(is_target) for _, is_target in parts)
        line = f"--- {sum(len(ids) for ids, _ in parts)} tokens, {targets} of them asked"
        if not targets:
            line += f". Will be dropped: the prompt fills {max_length} tokens; a larger --max-length keeps it"
        elif any(len(ids) > length for ids, _ in encoded_rows):
            line += f", cut at {max_length} tokens"
        print(line, *(show_asked(tokenizer, *part, color=sys.stdout.isatty()) for part in parts), sep="\n")


def resolve_model(run: InstructRun) -> InstructRun:
    """Return the run with the default model if it names neither a model nor a preset."""
    return replace(run, model=DEFAULT_MODEL) if run.model is None and run.preset is None else run


def unused_fields(run: InstructRun) -> dict[str, str]:
    """Return the fields that nothing in this run reads, and why."""
    unread = {
        "text_column": "rows are instructions, messages, or prompt and completion",
        "sample_prompt": "the sample is an answer to a question of the validation split",
        **unused_options(resolve_model(run)),
    }
    if run.test_fraction == 0:
        unread |= dict.fromkeys(
            ("answers", "max_new_tokens"), "the questions are those of the test split, and --test-fraction is 0"
        )
    return unread


def check_instructions(run: InstructRun) -> None:
    """Raise a ValueError for what this recipe cannot do."""
    if run.streaming:
        raise ValueError("Equal questions have to be found before rows are split: leave --streaming out.")


def preview_instead(run: InstructRun) -> bool:
    """Print a preview if the options ask for it."""
    if run.preview is not None:
        preview(run)
    return run.preview is not None


def main(argv: list[str] | None = None) -> None:
    run_recipe(
        InstructRun,
        argv,
        build,
        check_instructions,
        unused_fields,
        resolve_model,
        instead=preview_instead,
    )


if __name__ == "__main__":
    main()
