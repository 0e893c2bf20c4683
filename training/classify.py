# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Train a text classifier from a base model and labeled texts.

    accelerate launch training/classify.py [--config FILE.yaml] [--field value ...]
    python training/classify.py --model DIR --predict FILE > scored.jsonl

Without arguments, GPT-2 learns which messages of the SMS Spam Collection are spam.

The recipe writes output_dir/model (weights, config with the names of the labels, code, tokenizer), predictions.jsonl
of the test split, loss.png, confusion.png, metrics.jsonl, evaluation.json, run.yaml, manifest.json and checkpoints/;
with --seeds N in folders seed-0/ and so on.
"""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from scratch_gpt_training.support.options import (
    Run,
    dataset_location,
    missed_shares,
    option,
    unused_options,
    with_default_model,
)
from scratch_gpt_training.support.run.recipe import run_recipe


DEFAULT_DATASET, DEFAULT_MODEL = "ucirvine/sms_spam", "openai-community/gpt2"
READ_TO_PREDICT = {"predict", "model", "model_revision", "output_dir", "text_column", "column_names", "max_length"}
READ_TO_PREDICT |= {"batch_size", "device"}


@dataclass(frozen=True)
class ClassifyRun(Run):
    """Classification."""

    COMMON = ("text_column", "label_column", "predict")
    MIN_STEPS = 1000

    output_dir: str = option(
        "runs/classify", "Folder of the run; one that holds files is refused without --overwrite."
    )
    model: str | None = option(
        None, f"Folder or Hub id of the model to start from; by default {DEFAULT_MODEL}, unless --preset is given."
    )
    dataset: str = option(DEFAULT_DATASET, "Labeled texts: a file, folder or glob, or a Hub dataset id.")
    text_column: str | None = option(
        None, "Column that holds the text; by default `text` (`sms` for the default dataset)."
    )
    label_column: str = option("label", "Column that holds the labels: names, numbers or lists.")
    label_separator: str | None = option(None, "Separator of several labels in one value.")
    column_names: str | None = option(None, "Column names of .csv and .tsv files without a header: `label,text`.")
    test_fraction: float = option(0.2, "Fraction of the rows that is scored before training and at the end.")
    test_dataset: str | None = option(None, "Use these rows as the test split: a file, folder or Hub dataset id.")
    test_split: str | None = option(None, "Use this split of a Hub dataset or of prepared text as the test split.")
    balance: Literal["none", "undersample", "weights"] = option(
        "none", "undersample: as many rows of each class as the smallest has; weights: weight the loss by class."
    )
    drop_duplicates: bool = option(False, "Keep one row of each distinct text.")
    keep_best: bool = option(
        True, "Save the weights with the lowest validation loss as model/, and the last ones as last/."
    )
    seeds: int = option(1, "Train N times with seeds seed, seed + 1, ...; model/ is the first one's.")
    predict: str | None = option(None, "Label the texts of this file with a trained --model, without training.")


def build(run: ClassifyRun):
    """Return the task: labeled rows in splits that share no text, and a model with a new head for their classes."""
    from functools import partial

    from scratch_gpt.data.rows.collate import collate_labeled
    from scratch_gpt.data.rows.labels import class_weights
    from scratch_gpt.train.objectives import classification
    from scratch_gpt.utils.plots import plot_classification
    from scratch_gpt_training.support.run.data import add_seen
    from scratch_gpt_training.support.run.models import row_length
    from scratch_gpt_training.support.run.setup import apply_tune
    from scratch_gpt_training.support.run.task import Hooks, Task

    splits, sources, notices = read_splits(run)
    names = [*splits["train"].classes]
    tokenizer, model, changes = start_model(run, names, splits["train"])
    max_length = row_length(run, model)
    notices += [*changes, *apply_tune(run, model)]
    rows, manifest = make_rows(splits, sources, names, tokenizer, max_length)
    add_seen(rows, run.seed)
    weights = class_weights(splits["train"].labels, names) if run.balance == "weights" else None
    collate = partial(collate_labeled, pad_token_id=tokenizer.pad_token_id, max_length=max_length)
    predictions = partial(extra_outputs, run, splits.get("test"), rows.get("test"), names, collate)

    return Task(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=collate,
        objective=classification(weights),
        measure=partial(measure, weights, names),
        tokens_per_row=manifest["splits"]["train"]["tokens"] / len(rows["train"]),
        manifest=manifest,
        description=describe_data(run, manifest, names),
        next_steps=("classify --model {folder}/model --predict YOUR.txt",),
        group_by_length=True,
        notices=notices,
        hooks=Hooks(plot=plot_classification, extra_outputs=predictions if "test" in rows else None),
    )


def read_splits(run: ClassifyRun):
    """Return the examples of each split, their source, and notices for the user."""
    from scratch_gpt.data.rows.labels import distinct_rows, match_labels, rows_not_in, split_examples, undersample
    from scratch_gpt.utils.wording import plural
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
            raise ValueError(f"All texts of {run.dataset} are in the test set, so none is left to train on.")
        if left_out := len(examples.texts) - len(apart):
            notices.append(f"Not used for training: {plural(left_out, 'row')} with a text of the test set.")
        examples = examples.take(apart)
        test_split["test"] = match_labels(test, [*examples.classes], examples.has_many)
    if run.drop_duplicates:
        examples = examples.take(distinct_rows(examples.texts))
    if run.balance == "undersample":
        examples = examples.take(undersample(examples.labels, run.seed))
    parts = split_examples(examples, run.validation_fraction, 0.0 if test_split else run.test_fraction, run.seed)
    splits = {**{name: examples.take(numbers) for name, numbers in parts.items()}, **test_split}
    if empty := [name for name, count in splits["train"].classes.items() if not count]:
        notices.append(f"Classes in the data without a training row: {', '.join(empty)}.")
    notices += missed_shares(
        run, {name: len(part.texts) for name, part in splits.items() if name not in test_split}, "rows"
    )
    return splits, sources, notices


def open_test(run: ClassifyRun, where, text_column: str):
    """Return the test rows, their source, and notices about skipped rows."""
    from scratch_gpt.data.sources.location import Location
    from scratch_gpt.runs.record import is_on_hub
    from scratch_gpt_training.support.evaluation.labeled import open_labeled

    if run.test_dataset is not None:
        where = Location(run.test_dataset, split=run.test_split or "train")
    else:
        where = where._replace(split=run.test_split)
    examples, source, notices = open_labeled(run, where, text_column, least=1)
    if run.test_split is not None and not is_on_hub(source) and "prepared" not in source:
        raise ValueError(
            f"{where.dataset} has no splits. Remove --test-split, or name a file to score with --test-dataset."
        )
    return examples, source, notices


def start_model(run: ClassifyRun, names: list[str], train) -> tuple[Any, Any, list[str]]:
    """Return the tokenizer and model (loaded or new) and notices; the head is always new, drawn with the seed."""
    from scratch_gpt import ScratchGPTForSequenceClassification
    from scratch_gpt.conversion.load import fresh_head
    from scratch_gpt.tokenization.tokenizer import end_of_text_id
    from scratch_gpt_training.support.run.models import (
        build_model,
        open_tokenizer,
        row_length,
        small_preset,
        small_vocabulary,
    )

    tokenizer = open_tokenizer(run, train.texts)
    if tokenizer.pad_token_id is None:
        end_of_text_id(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token  # the mask marks padding, so the vocabulary need not grow
    model: Any = build_model(run, tokenizer, run.max_length, ScratchGPTForSequenceClassification)
    fresh_head(model, names, has_many=train.has_many, seed=run.seed)
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, role, getattr(tokenizer, role))
    tokenizer.model_max_length = row_length(run, model)  # the limit for `truncation=True`
    return tokenizer, model, [*small_vocabulary(run, tokenizer), *small_preset(run, model.config, len(names))]


def make_rows(splits, sources, names: list[str], tokenizer, max_length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rows of each split, and the manifest."""
    from functools import partial

    from scratch_gpt.data.manifest import make_manifest
    from scratch_gpt.data.rows.labels import LabeledRows
    from scratch_gpt.tokenization.tokenizer import encode_batch, tokenizer_facts

    encode, label2id = partial(encode_batch, tokenizer), {name: id for id, name in enumerate(names)}
    rows = {name: LabeledRows(part, encode, label2id, max_length) for name, part in splits.items()}
    records = {name: part.facts() for name, part in rows.items()}
    facts = tokenizer_facts(tokenizer)
    manifest = make_manifest("classify", sources, records, tokenizer=facts, max_length=max_length)
    return rows, manifest


def measure(weights, names: list[str], model, batches, reduce, split):
    """Return the metrics and tables of a split."""
    from scratch_gpt.evaluation.classification import classification_metrics, classification_tables, sum_batches

    sums = sum_batches(model, batches, weights, reduce)
    return classification_metrics(sums), classification_tables(sums, names)


def extra_outputs(run: ClassifyRun, test, rows, names: list[str], collate, model, tables) -> dict[str, Any]:
    """Return the further outputs: the predictions of the test split and, with one label per text, their confusions."""
    from scratch_gpt.evaluation.classification import classify_batches, prediction_lines
    from scratch_gpt.train.batches import BatchLayout, evaluation_batches
    from scratch_gpt.utils.files import write_text
    from scratch_gpt.utils.plots import plot_confusion

    device = next(model.parameters()).device
    batches = (batch for batch, _ in evaluation_batches(rows, collate, BatchLayout(run.batch_size), device))
    scores = classify_batches(model, batches, test.has_many)
    lines = prediction_lines(test.texts, scores, names, test.has_many, test.labels)
    matrix = tables["confusion_matrix"]
    plots = {} if test.has_many else {"confusion.png": lambda file: plot_confusion(matrix, names, file, "test split")}
    return {"predictions.jsonl": lambda file: write_text(file, "".join(lines)), **plots}


def describe_data(run: ClassifyRun, manifest: dict, names: list[str]) -> list[str]:
    """Describe the classes and the splits."""

    from scratch_gpt.utils.wording import plural

    lines = [f"Classes: {', '.join(names)}. No text is in two splits."]
    for name, facts in manifest["splits"].items():
        classes = ", ".join(f"{count:,} {label}" for label, count in facts["classes"].items())
        parts = [f"{plural(facts['rows'], 'text')} ({classes})", plural(facts["tokens"], "token")]
        if facts["duplicates"]:
            parts.append(plural(facts["duplicates"], "duplicate"))
        if facts["cut"]:
            parts.append(f"{facts['cut']:,} longer than {manifest['max_length']} tokens were cut")
        lines.append(f"{name:>10}: {', '.join(parts)}")
    return lines


def predict(run: ClassifyRun) -> None:
    """Write a trained model's prediction for each text to standard output, as one JSON object per line."""
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
    if kind_ending(Path(run.predict)) == ".txt":  # one text per line; a text may hold other line-breaking characters
        values = [line for value in values for line in value.removesuffix("\n").split("\n")]
    texts = read_texts(values)
    classifier = load_classifier(run)
    ids = encode_batch(classifier.tokenizer, texts)
    rows = [{"input_ids": row[: classifier.max_length]} for row in ids]
    for line in predicted_lines(classifier, rows, texts, run.batch_size):
        sys.stdout.write(line)


def resolve_model(run: ClassifyRun) -> ClassifyRun:
    """Return the run with the model to start from, or to predict with, if none is named."""
    if run.model is not None:
        return run
    if run.predict is not None:
        return replace(run, model=f"{run.output_dir}/model")
    return with_default_model(run, DEFAULT_MODEL)


def unused_fields(run: ClassifyRun) -> dict[str, str]:
    """Return the fields that this run does not use, with the reasons."""
    if run.predict is None:
        return {"sample_prompt": "no sample is written", **unused_options(resolve_model(run))}
    unused = {item.name for item in fields(run)} - READ_TO_PREDICT if run.predict else ()
    return dict.fromkeys(unused, "--predict scores texts and trains nothing")


def check_classes(run: ClassifyRun) -> None:
    """Raise a ValueError for options that this recipe cannot combine."""
    if run.streaming:
        raise ValueError("The rows of each class must be counted before they are split: remove --streaming.")
    if run.predict == "":
        raise ValueError("--predict is empty.")
    if "" in (run.test_dataset, run.test_split):
        raise ValueError("--test-dataset or --test-split is empty. Give the rows to score, or remove it.")
    if (run.test_dataset or run.test_split) and run.test_fraction != ClassifyRun.test_fraction:
        raise ValueError("--test-fraction holds out a part of --dataset. Remove it if you give a separate test set.")
    if run.label_separator == "":
        raise ValueError("--label-separator is empty. Give the text between two labels, or remove it.")


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
