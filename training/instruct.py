# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Tune a base model on instructions with their answers, so that it follows instructions.

    accelerate launch training/instruct.py [--config FILE.yaml] [--field value ...]
    python training/instruct.py --dataset FILE.json --preview 3

Without arguments, GPT-2 learns the 52,000 instructions of tatsu-lab/alpaca.

The recipe writes output_dir/model (weights, config, code, tokenizer with the chat template of the training),
responses.json (the answers to the test split before and after, with the references), loss.png, metrics.jsonl,
evaluation.json, run.yaml, manifest.json and checkpoints/; with --seeds N in folders seed-0/ and so on.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scratch_gpt_training.support.options import Run, missed_shares, option, unused_options, with_default_model
from scratch_gpt_training.support.run.recipe import run_recipe


DEFAULT_DATASET, DEFAULT_MODEL = "tatsu-lab/alpaca", "openai-community/gpt2"
RESPONSES = "responses.json"


@dataclass(frozen=True)
class InstructRun(Run):
    """Instruction tuning."""

    COMMON = ("prompt_format", "preview")
    MIN_STEPS = 1000
    NOT_SWEPT = ("max_length", "vocab_size")  # rows without room for an answer are dropped

    output_dir: str = option(
        "runs/instruct", "Folder of the run; one that holds files is refused without --overwrite."
    )
    model: str | None = option(
        None, f"Folder or Hub id of the model to start from; by default {DEFAULT_MODEL}, unless --preset is given."
    )
    dataset: str = option(
        DEFAULT_DATASET, "Instructions or conversations: a file, folder or glob, or a Hub dataset id."
    )
    prompt_format: str | None = option(
        None, "Format of prompts: alpaca, book, chatml, phi3, plain or tokenizer; by default the model's, else alpaca."
    )
    train_on: Literal["completion", "prompt+completion"] = option(
        "completion", "Tokens that count for the loss: the answers, or everything."
    )
    pack: bool = option(False, "Pack several conversations into each row; they do not attend to each other.")
    preview: int | None = option(None, "Show N rows with the learned part colored, then stop.")
    validation_fraction: float = option(0.05, "Fraction of the rows that is held out for validation.")
    test_fraction: float = option(
        0.1, "Fraction of the rows that is scored and answered before training and at the end."
    )
    answers: int | None = option(None, "Number of test questions to answer; by default all.")
    max_new_tokens: int = option(128, "Maximum number of tokens in an answer.")
    keep_best: bool = option(
        True, "Save the weights with the lowest validation loss as model/, and the last ones as last/."
    )
    seeds: int = option(1, "Train N times with seeds seed, seed + 1, ...; model/ is the first one's.")


def build(run: InstructRun):
    """Return the task: conversations in splits that share no question, and a model that keeps their format."""
    from functools import partial

    from scratch_gpt.data.rows.collate import collate_rows
    from scratch_gpt.train.objectives import causal_lm
    from scratch_gpt_training.support.run.models import row_length
    from scratch_gpt_training.support.run.setup import apply_tune
    from scratch_gpt_training.support.run.task import Hooks, Task

    splits, source, notices = read_splits(run)
    tokenizer, model, changes = start_model(run, splits["train"])
    max_length = row_length(run, model)
    rows, manifest = make_rows(run, splits, source, tokenizer, max_length)
    notices += [*changes, *apply_tune(run, model)]
    test = [splits["test"][k] for k in rows["test"].kept] if "test" in rows else []
    shared = find_contamination(test, splits["train"])
    notices += describe_contamination(test, shared)
    exam = make_exam(run, test, shared, tokenizer)

    return Task(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=partial(collate_rows, pad_token_id=tokenizer.pad_token_id, max_length=max_length),
        objective=causal_lm,
        measure=partial(measure, run, manifest["splits"], exam, shared),
        tokens_per_row=rows["train"].asked_per_row,
        manifest=manifest,
        description=describe_data(manifest),
        next_steps=("generate {folder}/model --chat",),
        group_by_length=not run.pack,
        notices=notices,
        hooks=Hooks(
            sample_text=partial(sample_answer, tokenizer, splits) if "validation" in splits else None,
            extra_outputs=(lambda model, tables: {RESPONSES: exam.write}) if exam.prompts else None,
        ),
    )


def read_splits(run: InstructRun):
    """Return the conversations of each split, their source, and notices for the user."""
    from scratch_gpt.data.columns import CONVERSATIONS
    from scratch_gpt.data.rows.conversations import read_conversations, text_of
    from scratch_gpt.utils.wording import plural
    from scratch_gpt_training.support.run.data import read_by_prompt

    splits, source, notices, empty = read_by_prompt(
        run, CONVERSATIONS, read_conversations, lambda conversation: text_of(conversation[:-1])
    )
    if empty:
        notices.append(f"Left out for an empty answer: {plural(len(empty), 'row')}, the first is row {empty[0]}.")
    notices += missed_shares(run, {name: len(part) for name, part in splits.items()}, "rows")
    return splits, source, notices


def start_model(run: InstructRun, train):
    """Return the tokenizer, which keeps the format, the model (loaded or new), and notices for the user."""
    from scratch_gpt_training.support.run.models import build_chat_lm, open_tokenizer, small_preset, small_vocabulary

    tokenizer = open_tokenizer(run, (message["content"] for conversation in train for message in conversation))
    notices = small_vocabulary(run, tokenizer)
    model, changes = build_chat_lm(run, tokenizer)
    return tokenizer, model, [*notices, *small_preset(run, model.config), *changes]


def make_rows(run: InstructRun, splits, source, tokenizer, max_length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rows of each split, and the manifest."""
    from scratch_gpt.data.manifest import make_manifest
    from scratch_gpt.data.rows.conversations import PromptRows, count_asked_bytes, encode_conversations
    from scratch_gpt.tokenization.tokenizer import tokenizer_facts

    rows = {
        name: PromptRows(encode_conversations(tokenizer, part, None, run.train_on), max_length, run.pack)
        for name, part in splits.items()
    }
    records = {
        name: {**part.facts(), "asked_bytes": count_asked_bytes(tokenizer, part)} for name, part in rows.items()
    }
    facts = tokenizer_facts(tokenizer)
    manifest = make_manifest(
        "instruct", [source], records, tokenizer=facts, max_length=max_length, pack=run.pack, train_on=run.train_on
    )
    return rows, manifest


def find_contamination(test, train) -> list[int]:
    """Return the indices of the test conversations that share 13 consecutive words with training ones."""
    from scratch_gpt.data.filters.duplicates import contaminated_texts
    from scratch_gpt.data.rows.conversations import of_both, text_of

    return contaminated_texts(*([text_of(of_both(conversation)) for conversation in part] for part in (test, train)))


def describe_contamination(test, shared: list[int]) -> list[str]:
    """Return a notice about the test rows that overlap training rows; nothing without test rows."""
    if not test:
        return []
    details = " evaluation.json has their numbers, and the scores without them." if shared else ""
    return [
        f"Contamination: {len(shared)} of {len(test)} test rows share a run of 13 words with training rows.{details}"
    ]


def make_exam(run: InstructRun, test, shared: list[int], tokenizer):
    """Return the questions of the test split to answer; a resumed run reads its first answers from their file."""
    from scratch_gpt.evaluation.before_after import Examination

    exam = Examination(test[: run.answers], tokenizer, shared=shared, max_new_tokens=run.max_new_tokens)
    if run.resume is not None:
        exam.recall(Path(run.output_dir) / RESPONSES)
    return exam


def measure(run: InstructRun, records, exam, shared: list[int], model, batches, reduce, split):
    """Return the metrics and tables of a split; for the test split the questions are answered too."""
    from scratch_gpt.evaluation.losses import language_metrics, mean_losses
    from scratch_gpt.train.accelerator import uncompiled
    from scratch_gpt.train.objectives import causal_lm

    loss = mean_losses(model, batches, causal_lm, reduce)["loss"]
    metrics = language_metrics(loss, records[split]["asked"] / records[split]["asked_bytes"])
    if split != "test":
        return metrics, {}
    metrics["contaminated"] = len(shared) / records["test"]["conversations"]
    tables = {"contamination": {"words": 13, "rows": shared}} if shared else {}
    if exam.prompts:
        is_first, model = exam.last is None, getattr(model, "module", model)
        with uncompiled(model):  # every process answers all questions, so that none waits for another
            scores, without = exam.take(model)
        metrics |= scores
        if without:
            tables["contamination"]["without_them"] = without
        if is_first and os.environ.get("RANK", "0") == "0":
            exam.write(Path(run.output_dir) / RESPONSES, is_over=False)  # for resuming
    return metrics, tables


def sample_answer(tokenizer, splits, model) -> str:
    """Return the model's answer to the first question of the validation split."""
    from scratch_gpt.data.rows.conversations import encode_prompt
    from scratch_gpt.generation.generate import generate_answers

    question = encode_prompt(tokenizer, splits["validation"][0])
    return "-> " + generate_answers(model, tokenizer, [question], temperature=0, max_new_tokens=40)[0]


def describe_data(manifest: dict) -> list[str]:
    """Describe the splits."""

    from scratch_gpt.utils.wording import plural

    lines = ["No question is in two splits."]
    for name, facts in manifest["splits"].items():
        rows = f"{plural(facts['conversations'], 'conversation')} in {plural(facts['rows'], 'row')}"
        parts = [f"{rows}, {facts['tokens']:,} tokens, of which {facts['asked']:,} count for the loss"]
        if facts["cut"]:
            parts.append(f"{facts['cut']:,} cut to {manifest['max_length']} tokens")
        if facts["dropped"]:
            parts.append(f"{facts['dropped']:,} dropped because the prompt alone is that long")
        lines.append(f"{name:>10}: {'; '.join(parts)}")
    return lines


def preview(run: InstructRun) -> None:
    """Print the first training rows with their targets colored; without `pack`, also rows that will be dropped."""
    from scratch_gpt.data.rows.conversations import PromptRows, encode_conversations, show_asked
    from scratch_gpt.utils.foreign import shown
    from scratch_gpt_training.support.run.models import row_length

    splits, _, notices = read_splits(run)
    tokenizer, model, changes = start_model(run, splits["train"])
    print(shown("\n".join([*notices, *changes])))
    max_length = row_length(run, model)
    conversations = splits["train"] if run.pack else splits["train"][: run.preview]
    encoded = encode_conversations(tokenizer, conversations, None, run.train_on)
    groups = [[k] for k in range(len(encoded))]
    if run.pack:
        rows = PromptRows(encoded, max_length, pack=True)
        groups = [[rows.kept[k] for k in group] for group in rows.groups]
        if rows.dropped:
            print(
                f"Will be dropped: {rows.dropped:,} of {len(encoded):,} conversations, because "
                "the prompt alone is as long as a row."
            )
    length = max_length + 1  # the last token of a row is only a target, and the first only an input
    for group in groups[: run.preview]:
        encoded_rows = [encoded[k] for k in group]
        parts = [(ids[:length], [False, *is_target[1:length]]) for ids, is_target in encoded_rows]
        targets = sum(sum(is_target) for _, is_target in parts)
        line = f"--- {sum(len(ids) for ids, _ in parts)} tokens, of which {targets} count for the loss"
        if not targets:
            line += f". Will be dropped: the prompt alone has {max_length} tokens or more; give a larger --max-length"
        elif any(len(ids) > length for ids, _ in encoded_rows):
            line += f", cut to {max_length} tokens"
        print(line, *(show_asked(tokenizer, *part, color=sys.stdout.isatty()) for part in parts), sep="\n")


def resolve_model(run: InstructRun) -> InstructRun:
    """Return the run with the default model if it names neither a model nor a preset."""
    return with_default_model(run, DEFAULT_MODEL)


def unused_fields(run: InstructRun) -> dict[str, str]:
    """Return the fields that this run does not use, with the reasons."""
    unused = {
        "text_column": "rows are instructions, messages, or prompt and completion",
        "sample_prompt": "the sample is an answer to a question of the validation split",
        **unused_options(resolve_model(run)),
    }
    if run.test_fraction == 0:
        unused |= dict.fromkeys(
            ("answers", "max_new_tokens"), "only questions of the test split are answered, and --test-fraction is 0"
        )
    return unused


def check_instructions(run: InstructRun) -> None:
    """Raise a ValueError for options that this recipe cannot combine."""
    if run.streaming:
        raise ValueError("Equal questions must be found before rows are split: remove --streaming.")


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
