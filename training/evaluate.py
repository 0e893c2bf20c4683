# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Evaluate a model on held-out data: likelihoods, answers, a judge's scores, safety checks.

    python training/evaluate.py MODEL --dataset my.txt
    python training/evaluate.py MODEL --multiple-choice hellaswag.jsonl --last-word lambada.jsonl
    python training/evaluate.py MODEL --tasks lambada_openai arc_easy blimp [--seed-models MODEL-OF-ANOTHER-SEED ...]
    python training/evaluate.py MODEL --questions test.json [--judge-url URL --judge-model NAME [--compare A B ...]]
    python training/evaluate.py MODEL --ifeval google/IFEval
    python training/evaluate.py MODEL --base BASE [--tuning-data train.json] [--secrets secrets.jsonl]
    python training/evaluate.py CLASSIFIER --dataset test.csv [--text-column NAME --label-column NAME]

MODEL is a run folder, a stock GPT-2 folder, an adapter, or one of these on the Hub.

Each result is written to output_dir/evaluation.json as soon as it is known, next to earlier results of the same model.
Answers are written to NAME-answers.jsonl and to NAME.html for reading, the judge's prompts and replies to
NAME-judge.jsonl, and a classifier's predictions to NAME-predictions.jsonl.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from scratch_gpt_training.support.command_line import one_clear_line, parse
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.options import SourceOptions, check_fields, check_model_folder, data_sets, option
from scratch_gpt_training.support.run.output_dir import check_writable, relative, set_name


@dataclass(frozen=True)
class EvaluateRun(SourceOptions):
    """Evaluation."""

    COMMON = (
        "model",
        "output_dir",
        "dataset",
        "stride",
        "tasks",
        "multiple_choice",
        "last_word",
        "questions",
        "temperature",
        "judge_url",
        "base",
    )

    model: str | None = option(None, "Folder or Hub id of the model; can be given without --model.")
    model_revision: str | None = option(None, "Branch, tag or commit of a Hub model.")
    output_dir: str = option("runs/evaluate", "Folder of evaluation.json; earlier results of the same model are kept.")

    dataset: str | None = option(
        None, "Text to measure the loss on, or labeled rows for a classifier: files or a Hub dataset id."
    )
    dataset_config: str | None = option(None, "Configuration name of all Hub datasets.")
    dataset_split: str = option("train", "Split of all Hub datasets and of prepared text.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of all Hub datasets.")
    label_column: str = option("label", "Column of labels (classifiers): names, numbers or lists.")
    label_separator: str | None = option(None, "Separator of several labels in one value.")
    column_names: str | None = option(None, "Column names of .csv and .tsv files without a header: `label,text`.")
    joiner: str | None = option(
        None, "Text between documents (`\\n` is a line break); by default each ends with the EOS token."
    )
    max_length: int | None = option(
        None, "Maximum number of tokens in a window; by default the model's context length."
    )
    stride: int | None = option(
        None, "New tokens per window; by default --max-length. A smaller value gives each token more context."
    )

    texts: list[str] | None = option(None, "More texts to measure the loss on, as --dataset.")
    tasks: list[str] | None = option(
        None, "Public tasks by their names in lm_eval: lambada_openai, arc_easy, blimp, or one set of BLiMP."
    )
    task_files: str | None = option(
        None, "Folder with the rows of --tasks as NAME.jsonl or .parquet; by default they are read from the Hub."
    )
    seed_models: list[str] | None = option(
        None, "The same model trained with other seeds: results are mean and spread over MODEL and these."
    )
    multiple_choice: list[str] | None = option(None, "Files of rows {query, choices, gold}, answered by likelihood.")
    last_word: list[str] | None = option(None, "Files of rows {text}; the model predicts the last word.")
    questions: str | None = option(
        None, "Rows with a reference answer (instruction, messages or prompt); the model answers them."
    )
    ifeval: str | None = option(
        None, "Rows of IFEval; the model answers them and the constraints are checked (an extra)."
    )
    prompt_format: str | None = option(
        None, "Format of prompts: alpaca, book, chatml, phi3 or plain; by default the tokenizer's chat template."
    )
    max_new_tokens: int = option(256, "Maximum number of tokens in an answer.")
    temperature: float = option(0.0, "0 decodes greedily; above 0 answers are sampled once per seed.")
    seeds: int = option(5, "Number of seeds (seed, seed + 1, ...) if answers are sampled.")

    judge_url: str | None = option(
        None, "OpenAI-compatible endpoint that scores answers to --questions; its key is read from JUDGE_API_KEY."
    )
    judge_model: str | None = option(None, "Name of the judge at that endpoint.")
    judge_repeats: int = option(3, "Number of times each answer is scored.")
    compare: list[str] | None = option(None, "Other models; the judge compares the answers of each pair.")

    base: str | None = option(
        None, "Model from which MODEL was tuned: measures drift and searches for trigger phrases."
    )
    tuning_data: str | None = option(None, "Data on which MODEL was tuned; by default read from its run.yaml.")
    secrets: str | None = option(None, "Rows {prefix, secret} planted in the training data; measures memorization.")

    batch_size: int = option(8, "Rows in a batch.")
    seed: int = option(0, "Seed of all sampling.")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Device to compute on, in fp32.")


OF_ALL = {  # fields that apply to language models and classifiers
    "model",
    "model_revision",
    "output_dir",
    "dataset",
    "dataset_config",
    "dataset_split",
    "dataset_revision",
    "text_column",
    "max_length",
    "tuning_data",
    "batch_size",
    "seed",
    "device",
}


def check(run: EvaluateRun) -> None:
    """Raise a ValueError for options that cannot be combined, before anything is loaded."""
    from scratch_gpt.evaluation.judge import check_judge_url, judge_key

    check_fields(run)
    if run.model is None:
        raise ValueError(f"No model given. Give its folder or Hub id: {command('evaluate MODEL')} ...")
    for name in (run.model, run.base, *(run.compare or ()), *(run.seed_models or ())):
        check_model_folder(name)
    check_writable(Path(run.output_dir))
    if not data_sets(run) and not run.tasks and run.base is run.secrets is None:
        raise ValueError(
            "Nothing to measure. Give --dataset, --texts, --tasks, --multiple-choice, --last-word, --questions, "
            "--ifeval, --base or --secrets."
        )
    check_names(run)
    if (run.judge_url is None) != (run.judge_model is None):
        raise ValueError("A judge needs both --judge-url (its address) and --judge-model (its name there).")
    if run.compare and run.judge_url is None:
        raise ValueError("--compare needs a judge. Give --judge-url and --judge-model.")
    if run.compare and {Path(relative(name)) for name in run.compare} == {Path(relative(run.model))}:
        raise ValueError("--compare names only MODEL itself. Give another model.")
    if run.judge_url is not None:
        check_judge_url(run.judge_url)
        judge_key()
        if run.questions is None:
            raise ValueError("A judge scores answers. Give --questions.")
    if run.tasks or run.seed_models:
        from scratch_gpt_training.support.evaluation.benchmark import check_tasks

        check_tasks(run)


def unused_fields(run: EvaluateRun) -> dict[str, str]:
    """Return the fields that this run does not use, with the reasons."""
    answers = run.questions is not None or run.ifeval is not None
    is_sampled = (answers and run.temperature > 0) or run.secrets is not None
    is_text = run.dataset is not None or bool(run.texts)
    likelihoods = is_text or run.tasks or run.multiple_choice or run.last_word or run.secrets is not None
    sets = bool(data_sets(run)) or run.secrets is not None
    groups = (
        (("dataset_config", "dataset_split", "dataset_revision"), sets, "a data set to measure, such as --questions"),
        (("text_column", "joiner", "stride"), is_text, "--dataset or --texts"),
        (("max_length",), likelihoods, "--dataset, --texts, --tasks, --multiple-choice, --last-word or --secrets"),
        (("task_files",), bool(run.tasks), "--tasks"),
        (("max_new_tokens", "temperature"), answers, "--questions or --ifeval"),
        (("prompt_format",), answers or run.base is not None, "--questions, --ifeval or --base"),
        (("seeds",), is_sampled, "--temperature above 0 or --secrets"),
        (("judge_repeats",), run.judge_url is not None, "--judge-url"),
        (("tuning_data",), bool(data_sets(run)) or run.base is not None, "a data set to measure, or --base"),
    )
    return {name: f"it needs {reason}" for names, is_read, reason in groups if not is_read for name in names}


def check_names(run: EvaluateRun) -> None:
    """Raise a ValueError if two results would have the same name in evaluation.json."""
    from scratch_gpt.runs.evaluation_file import RESERVED

    names = [*map(set_name, data_sets(run)), *(run.tasks or ())]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(
            f"Two sets have the name {twice!r} in evaluation.json. Rename a file, or measure one separately."
        )
    if run.base is not None and run.dataset is not None:
        names.append(f"drift/{set_name(run.dataset)}")
    if reserved := next((name for name in names if name in RESERVED), None):
        raise ValueError(
            f"A set has the name {reserved!r}, which has another meaning in evaluation.json. Rename its file."
        )


def check_kind(run: EvaluateRun, is_labeling: bool) -> None:
    """Raise a ValueError for the first option that only works with the other kind of model."""
    of_labels = {"label_column", "label_separator", "column_names"}
    unused = {item.name for item in fields(EvaluateRun)} - OF_ALL - of_labels if is_labeling else of_labels
    changed = [item.name for item in fields(run) if item.name in unused and getattr(run, item.name) != item.default]
    if changed:
        kinds = ("a classifier", "a language model") if is_labeling else ("a language model", "a classifier")
        flag = f"--{changed[0].replace('_', '-')}"
        raise ValueError(f"{run.model} is {kinds[0]}, and {flag} only works with {kinds[1]}. Remove it.")
    if is_labeling and run.dataset is None:
        raise ValueError(f"{run.model} is a classifier. Give the labeled rows to score with --dataset.")


def evaluate(run: EvaluateRun) -> None:
    """Measure the model on every set; write and print each result as soon as it is known."""
    from itertools import chain

    from scratch_gpt.runs.evaluation_file import read_evaluation, record_measured
    from scratch_gpt.runs.folder import EVALUATION
    from scratch_gpt.utils.foreign import shown
    from scratch_gpt_training.support.evaluation.benchmark import measure_benchmark
    from scratch_gpt_training.support.evaluation.labeled import load_classifier, measure_labeled
    from scratch_gpt_training.support.evaluation.measurements import (
        format_metrics,
        is_classifier,
        load_evaluated,
    )
    from scratch_gpt_training.support.evaluation.safety import check_safety, with_contamination

    assert run.model is not None  # checked by `check`
    file, model = Path(run.output_dir) / EVALUATION, relative(run.model)
    revision = run.model_revision
    read_evaluation(file, model, revision)  # raises for a file about another model, before anything is computed
    check_kind(run, is_labeling := is_classifier(run.model, revision))
    if is_labeling:
        assert run.dataset is not None  # checked by `check_kind`
        measured = (set_name(run.dataset), measure_labeled(run, load_classifier(run)))
        results = with_contamination(run, [measured])
    else:
        subject = load_evaluated(run, run.model, revision)
        results = chain(with_contamination(run, measure_benchmark(run, subject)), check_safety(run, subject))
    for name, measured in results:
        record_measured(file, model, name, measured, revision)
        print(shown(f"{name}: {format_metrics(measured.results)}"), flush=True)
    print(f"Written: {file}")


def main(argv: list[str] | None = None) -> None:
    with one_clear_line(stopped="The results measured until then are written."):
        run = parse(EvaluateRun, argv, positional=("model",), unused=unused_fields)
        check(run)

        from scratch_gpt.utils.locks import hold

        with hold(run.output_dir):
            evaluate(run)


if __name__ == "__main__":
    main()
