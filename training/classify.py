# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Labeled texts and a base model -> a classifier that Hugging Face clients load.

    accelerate launch training/classify.py [--config FILE.yaml] [--field value ...]
    python training/classify.py --model DIR --predict FILE > scored.jsonl

Without arguments: GPT-2 learns which of the SMS Spam Collection's messages are spam. Writes output_dir/model (weights,
config with the labels' names, code, tokenizer), predictions.jsonl of the test split, loss.png, confusion.png,
metrics.jsonl, evaluation.json, run.yaml, manifest.json and checkpoints/; with --seeds N a folder seed-0/ ... each.
"""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from scratch_gpt_training.support.options import Run, dataset_location, missed_shares, option, unused_options
from scratch_gpt_training.support.run.recipe import run_recipe


DEFAULT_DATASET, DEFAULT_MODEL = "ucirvine/sms_spam", "openai-community/gpt2"
READ_TO_PREDICT = {"predict", "model", "model_revision", "output_dir", "text_column", "column_names", "max_length"}
READ_TO_PREDICT |= {"batch_size", "device"}


@dataclass(frozen=True)
class ClassifyRun(Run):
    """Classification."""

    output_dir: str = option("runs/classify", "Folder to write; one that holds a run is refused without --overwrite.")
    model: str | None = option(None, f"Folder or Hub id to start from; {DEFAULT_MODEL} where there is no --preset.")
    dataset: str = option(DEFAULT_DATASET, "A file, folder or glob, or a Hub dataset id.")
    text_column: str | None = option(None, "The column that holds the text; by default `text`, `sms` of the default.")
    label_column: str = option("label", "The column that holds names, numbers, or a list of them.")
    label_separator: str | None = option(None, "Several labels in one value are joined by this.")
    column_names: str | None = option(None, "Names for .csv and .tsv files without a header: `label,text`.")
    test_fraction: float = option(0.2, "Share that is scored once before the first step and once at the end.")
    test_dataset: str | None = option(None, "Score these rows instead of a share: a file, folder or Hub dataset id.")
    test_split: str | None = option(None, "Score this split instead, of a Hub dataset or of prepared text.")
    balance: Literal["none", "undersample", "weights"] = option(
        "none", "As many rows of each class as the smallest has, or a loss that counts each class alike."
    )
    drop_duplicates: bool = option(False, "Keep one row of each distinct text.")
    keep_best: bool = option(True, "model/ is the best by validation loss, and last/ the last, where they differ.")
    seeds: int = option(1, "Train so many times, with seed, seed + 1, ...; model/ is the first one's.")
    predict: str | None = option(None, "Score the texts of this file with a finished --model, and train nothing.")


def build(run: ClassifyRun):
    """Labeled rows in splits that share no text, and a model with a fresh head for their classes."""
    from functools import partial

    from scratch_gpt.data.manifest import make_manifest
    from scratch_gpt.data.rows.collate import collate_labeled
    from scratch_gpt.data.rows.labels import LabeledRows, class_weights
    from scratch_gpt.evaluation.classification import (
        classification_metrics,
        classification_tables,
        classify_batches,
        prediction_lines,
        sum_batches,
    )
    from scratch_gpt.tokenization.tokenizer import check_vocabulary, count_ids, encode_batch, fingerprint
    from scratch_gpt.train.batches import BatchLayout, epoch_order, evaluation_batches
    from scratch_gpt.train.objectives import classification
    from scratch_gpt.utils.files import write_text
    from scratch_gpt.utils.plots import plot_classification, plot_confusion
    from scratch_gpt_training.support.run.models import small_preset, small_vocabulary
    from scratch_gpt_training.support.run.setup import apply_tune
    from scratch_gpt_training.support.run.task import Hooks, Task

    splits, sources, notices = read_splits(run)
    names = [*splits["train"].classes]
    tokenizer, model = start_model(run, names, splits["train"])
    notices += [*small_vocabulary(run, tokenizer), *small_preset(run, model.config, len(names))]
    notices += apply_tune(run, model)
    check_vocabulary(tokenizer, model.config.vocab_size)
    max_length = run.max_length or model.config.max_position_embeddings
    encode, label2id = partial(encode_batch, tokenizer), {name: id for id, name in enumerate(names)}
    rows: dict[str, Any] = {name: LabeledRows(part, encode, label2id, max_length) for name, part in splits.items()}
    records = {name: part.facts() for name, part in rows.items()}
    tokenizer_facts = {"fingerprint": fingerprint(tokenizer), "vocab_size": count_ids(tokenizer)}
    manifest = make_manifest("classify", sources, records, tokenizer=tokenizer_facts, max_length=max_length)
    if "validation" in rows:
        numbers = epoch_order(len(rows["train"]), run.seed, 0)[: len(rows["validation"])]
        rows["seen"] = [rows["train"][k] for k in numbers]
    weights = class_weights(splits["train"].labels, names) if run.balance == "weights" else None
    has_many = splits["train"].has_many
    collate = partial(collate_labeled, pad_token_id=tokenizer.pad_token_id, max_length=max_length)

    def measure(model, batches, reduce, split):
        sums = sum_batches(model, batches, weights, reduce)
        return classification_metrics(sums), classification_tables(sums, names)

    def extra_outputs(model, tables):
        device = next(model.parameters()).device
        batches = (
            batch for batch, _ in evaluation_batches(rows["test"], collate, BatchLayout(run.batch_size), device)
        )
        scores = classify_batches(model, batches, has_many)
        lines = prediction_lines(splits["test"].texts, scores, names, has_many, splits["test"].labels)
        matrix = tables["confusion_matrix"]
        plots = {} if has_many else {"confusion.png": lambda file: plot_confusion(matrix, names, file, "test split")}
        return {"predictions.jsonl": lambda file: write_text(file, "".join(lines)), **plots}

    return Task(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=collate,
        objective=classification(weights),
        measure=measure,
        tokens_per_row=records["train"]["tokens"] / len(rows["train"]),
        manifest=manifest,
        description=describe_data(run, manifest, names),
        next_steps=("classify --model {folder}/model --predict YOUR.txt",),
        group_by_length=True,
        notices=notices,
        hooks=Hooks(plot=plot_classification, extra_outputs=extra_outputs if "test" in rows else None),
    )


def read_splits(run: ClassifyRun):
    """The examples of each split, where they are from, and what to say of them."""
    from scratch_gpt.data.rows.labels import distinct_rows, match_labels, rows_not_in, split_examples, undersample
    from scratch_gpt_training.support.evaluation.labeled import open_labeled

    text_column = run.text_column or ("sms" if run.dataset == DEFAULT_DATASET else "text")
    where = dataset_location(run)
    examples, source, notices = open_labeled(run, where, text_column)
    sources, test_split = [source], {}
    if run.test_dataset is not None or run.test_split is not None:
        test, test_source, test_notices = open_test(run, where, text_column)
        sources.append(test_source)
        notices += test_notices
        apart = rows_not_in(examples.texts, test.texts)
        if not apart:
            raise ValueError(f"Every text of {run.dataset} is in the test set: nothing is left to train on.")
        if left_out := len(examples.texts) - len(apart):
            notices.append(f"Left out of training: {left_out:,} rows whose texts are in the test set.")
        examples = examples.take(apart)
        test_split["test"] = match_labels(test, [*examples.classes], examples.has_many)
    if run.drop_duplicates:
        examples = examples.take(distinct_rows(examples.texts))
    if run.balance == "undersample":
        examples = examples.take(undersample(examples.labels, run.seed))
    parts = split_examples(examples, run.validation_fraction, 0.0 if test_split else run.test_fraction, run.seed)
    splits = {**{name: examples.take(numbers) for name, numbers in parts.items()}, **test_split}
    if empty := [name for name, count in splits["train"].classes.items() if not count]:
        notices.append(f"Classes that the data name and no training row has: {', '.join(empty)}.")
    notices += missed_shares(
        run, {name: len(part.texts) for name, part in splits.items() if name not in test_split}, "rows"
    )
    return splits, sources, notices


def open_test(run: ClassifyRun, where: tuple, text_column: str):
    """The rows that are scored, and where they are from, and what was not read."""
    from scratch_gpt.runs.record import is_on_hub
    from scratch_gpt_training.support.evaluation.labeled import open_labeled

    if run.test_dataset is not None:
        where = (run.test_dataset, None, run.test_split or "train", None)
    else:
        where = (where[0], where[1], run.test_split, where[3])
    examples, source, notices = open_labeled(run, where, text_column, least=1)
    if run.test_split is not None and not is_on_hub(source) and "prepared" not in source:
        raise ValueError(f"{where[0]} has no splits: leave --test-split out; --test-dataset names a file to score.")
    return examples, source, notices


def start_model(run: ClassifyRun, names: list[str], train) -> tuple[Any, Any]:
    """(tokenizer, model): of `model`, or new ones; the head is new in any case, and drawn by the seed."""
    from scratch_gpt import ScratchGPTForSequenceClassification
    from scratch_gpt.conversion.load import fresh_head
    from scratch_gpt.tokenization.tokenizer import end_of_text_id
    from scratch_gpt_training.support.run.models import build_model, open_tokenizer

    tokenizer = open_tokenizer(run, train.texts)
    if tokenizer.pad_token_id is None:
        end_of_text_id(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token  # what is filled is told by the mask: nothing has to be resized
    model: Any = build_model(run, tokenizer, run.max_length, ScratchGPTForSequenceClassification)
    fresh_head(model, names, has_many=train.has_many, seed=run.seed)
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, role, getattr(tokenizer, role))
    tokenizer.model_max_length = run.max_length or model.config.max_position_embeddings  # `truncation=True` cuts there
    return tokenizer, model


def describe_data(run: ClassifyRun, manifest: dict, names: list[str]) -> list[str]:
    """Describe the classes and the splits."""
    lines = [f"Classes: {', '.join(names)}. No text is in two splits."]
    for name, facts in manifest["splits"].items():
        classes = ", ".join(f"{count:,} {label}" for label, count in facts["classes"].items())
        lines.append(
            f"{name:>10}: {facts['rows']:,} texts ({classes}), {facts['duplicates']:,} of them duplicates, "
            f"{facts['tokens']:,} tokens, {facts['cut']:,} cut at {manifest['max_length']} tokens"
        )
    return lines


def predict(run: ClassifyRun) -> None:
    """Write what a finished model says of each text, one JSON object a line, to standard output."""
    from scratch_gpt.data.columns import one_column
    from scratch_gpt.data.rows.labels import read_texts
    from scratch_gpt.data.sources.documents import open_rows
    from scratch_gpt.tokenization.tokenizer import encode_batch
    from scratch_gpt.utils.foreign import shown
    from scratch_gpt.utils.local_files import kind_ending
    from scratch_gpt_training.support.evaluation.labeled import load_classifier, parse_column_names, predicted_lines

    assert run.predict is not None
    column = run.text_column or "text"
    rows, _, notices = open_rows(
        run.predict, columns=one_column(column), column_names=parse_column_names(run.column_names)
    )
    for notice in notices:
        print(shown(notice), file=sys.stderr)
    values = rows[column][:]
    if kind_ending(Path(run.predict)) == ".txt":  # a text a line; other characters that break a line may be in a text
        values = [line for value in values for line in value.removesuffix("\n").split("\n")]
    texts = read_texts(values)
    classifier = load_classifier(run)
    ids = encode_batch(classifier.tokenizer, texts)
    rows = [{"input_ids": row[: classifier.max_length]} for row in ids]
    for line in predicted_lines(classifier, rows, texts, run.batch_size):
        sys.stdout.write(line)


def resolve_model(run: ClassifyRun) -> ClassifyRun:
    """The run with the model that it starts from, or predicts with, where none is named."""
    if run.model is not None:
        return run
    if run.predict is not None:
        return replace(run, model=f"{run.output_dir}/model")
    return run if run.preset is not None else replace(run, model=DEFAULT_MODEL)


def unused_fields(run: ClassifyRun) -> dict[str, str]:
    """Return the fields that nothing in this run reads, and why."""
    if run.predict is None:
        return {"sample_prompt": "no sample is written", **unused_options(resolve_model(run))}
    unread = {item.name for item in fields(run)} - READ_TO_PREDICT if run.predict else ()
    return dict.fromkeys(unread, "--predict scores texts and trains nothing")


def check_classes(run: ClassifyRun) -> None:
    """Raise a ValueError for what this recipe cannot do."""
    if run.streaming:
        raise ValueError("The rows of each class have to be counted before they are split: leave --streaming out.")
    if run.predict == "":
        raise ValueError("--predict is empty.")
    if "" in (run.test_dataset, run.test_split):
        raise ValueError("--test-dataset or --test-split is empty. Give the rows to score, or leave it out.")
    if (run.test_dataset or run.test_split) and run.test_fraction != ClassifyRun.test_fraction:
        raise ValueError("--test-fraction holds out a share of --dataset; with a test set of its own leave it out.")
    if run.label_separator == "":
        raise ValueError("--label-separator is empty. Give the text between two labels, or leave it out.")


def predict_instead(run: ClassifyRun) -> bool:
    """Predict if the options ask for it."""
    if run.predict is not None:
        predict(run)
    return run.predict is not None


def main(argv: list[str] | None = None) -> None:
    run_recipe(
        ClassifyRun,
        argv,
        build,
        check_classes,
        unused_fields,
        resolve_model,
        instead=predict_instead,
        plan_shape=lambda run: {"classes": 2},
    )


if __name__ == "__main__":
    main()
