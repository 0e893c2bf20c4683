"""Classify spam: a base pretrained on books, tuned in several ways, against naive Bayes.

    python tests/benchmarks/spam.py --books FOLDER [--spam FILE] [--out FILE.json]

The base is pretrained first, half an hour on two cores. Each way's learning rate is the one with the lowest validation
loss on a separate split (seed 100); then five seeds with unseen splits are run, balanced to 747 + 747 messages
(duplicates stay in one split) and to 653 + 653 distinct ones. All ways, including naive Bayes, have the same splits.
If stopped, run it again: it resumes.
"""

import argparse
import csv
import json
import math
import os
import re
import statistics
from collections import Counter
from pathlib import Path

from runs import recipe, slug

from scratch_gpt.data.rows.labels import Examples, distinct_rows, read_examples, split_examples, undersample
from scratch_gpt.data.sources.documents import open_rows
from scratch_gpt.evaluation.statistics import over_seeds


SHAPE = ["--preset", "tiny", "--config-overrides", "hidden_size=192", "--max-length", "128"]
BASE = [*SHAPE, "--vocab-size", "4096", "--batch-size", "8", "--epochs", "1", "--learning-rate", "2e-3"]
BALANCES = {
    "747 + 747": ["--balance", "undersample"],
    "653 + 653": ["--balance", "undersample", "--drop-duplicates", "true"],
}
# (whether it starts from the base, fields, learning rates to choose from) of each way
WAYS = {
    "pretrained, full": (True, ["--tune", "full"], ("2e-4", "5e-4", "1e-3")),
    "pretrained, last block": (True, ["--tune", "last-block"], ("5e-4", "1e-3", "2e-3")),
    "pretrained, LoRA": (True, ["--tune", "lora", "--lora-targets", "attention"], ("1e-3", "2e-3", "5e-3")),
    "random weights": (False, [], ("5e-4", "1e-3", "2e-3")),
}
TUNE = ["--max-length", "128", "--batch-size", "16", "--epochs", "6", "--dropout", "0.1", "--workers", "0"]
WORD = re.compile(r"[a-z']+|\d+|[^\sa-z\d]")


# --- Naive Bayes -------------------------------------------------------------------------------------------------


def naive_bayes(train: Examples, test: Examples) -> float:
    """Return the accuracy of multinomial naive Bayes on words, with one added to every count (Laplace)."""
    words = {name: Counter() for name in set(train.labels)}
    for text, label in zip(train.texts, train.labels, strict=True):
        words[label].update(WORD.findall(text.lower()))
    vocabulary = set().union(*words.values())
    prior = {name: math.log(train.labels.count(name) / len(train.labels)) for name in words}
    total = {name: math.log(sum(counts.values()) + len(vocabulary)) for name, counts in words.items()}

    def score(text: str, name: str) -> float:
        known = (word for word in WORD.findall(text.lower()) if word in vocabulary)
        return prior[name] + sum(math.log(words[name][word] + 1) - total[name] for word in known)

    called = [max(words, key=lambda name: score(text, name)) for text in test.texts]
    return statistics.mean(one == other for one, other in zip(called, test.labels, strict=True))


def splits_of(examples: Examples, distinct: bool, seed: int) -> dict[str, Examples]:
    """Return the splits that the recipe makes."""
    if distinct:
        examples = examples.take(distinct_rows(examples.texts))
    examples = examples.take(undersample(examples.labels, seed))
    return {name: examples.take(part) for name, part in split_examples(examples, 0.1, 0.2, seed).items()}


# --- Runs --------------------------------------------------------------------------------------------------------


def tune(options, way: str, balance: str, folder: str, *more: str) -> dict:
    from_base, fields, _ = WAYS[way]
    base = str(options.work / "base" / "model")
    start = ["--model", base] if from_base else [*SHAPE[:4], "--tokenizer", base]
    data = ["--dataset", options.spam, "--column-names", "label,text"] if options.spam else []
    return recipe(
        "classify", options.work / folder, *data, *start, *TUNE, *fields, *BALANCES[balance], *more, *options.quick
    )


def run(options) -> dict:
    base = recipe("pretrain", options.work / "base", "--dataset", str(options.books), *BASE, *options.quick)
    if options.spam:
        with open(options.spam, newline="", encoding="utf-8") as file:
            labels, texts = zip(*csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), strict=True)
    else:
        rows = open_rows("ucirvine/sms_spam").rows
        labels, texts = [rows.features["label"].names[n] for n in rows["label"]], rows["sms"][:]
    examples = read_examples(texts, labels)

    figures = {"base": {"minutes": base["seconds"] / 60, **base["results"]["validation"]}, "ways": {}}
    for way, (_, _, rates) in WAYS.items():
        tried = {}
        for rate in rates:
            folder = slug("choose", way, rate)
            content = tune(options, way, "747 + 747", folder, "--learning-rate", rate, "--seed", "100")
            tried[rate] = content["results"]["validation"]["loss"]
        rate = min(tried, key=tried.get)
        found = figures["ways"][way] = {"learning_rate": rate, "validation_loss_at_seed_100": tried}
        for balance in BALANCES:
            more = ["--learning-rate", rate, "--seeds", str(options.seeds)]
            content = tune(options, way, balance, slug(way, balance), *more)
            found[balance] = {
                "before": content["results"]["before/test"]["accuracy"],
                **content["results"]["test"],
                "seconds_per_seed": content["seconds"] / options.seeds,
            }
    bayes = figures["ways"]["naive Bayes"] = {}
    for balance in BALANCES:
        scores = []
        for seed in range(options.seeds):
            splits = splits_of(examples, balance == "653 + 653", seed)
            ours = options.work / slug("random weights", balance) / f"seed-{seed}" / "predictions.jsonl"
            assert splits["test"].texts == [json.loads(line)["text"] for line in ours.read_text().splitlines()]
            scores.append({"accuracy": naive_bayes(splits["train"], splits["test"])})
        bayes[balance] = over_seeds(scores)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True, help="folder of .txt files to pretrain the base on")
    parser.add_argument("--spam", help="label<TAB>text without a header; by default ucirvine/sms_spam from the Hub")
    parser.add_argument("--work", type=Path, default=Path("runs/spam"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_const", const=["--max-steps", "3"], default=[], help="two steps each, for a quick try"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    options.work = options.work / "quick" if options.quick else options.work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    figures = run(options)
    print(f"\nbase: {figures['base']['minutes']:.1f} minutes, {figures['base']['bits_per_byte']:.2f} bits per byte")
    print(f"{'test accuracy, %':24}" + "".join(f"{balance:>20}" for balance in BALANCES))
    for way, found in figures["ways"].items():
        cells = [found[balance]["accuracy"] for balance in BALANCES]
        print(f"{way:24}" + "".join(f"{100 * cell['mean']:>12.2f} ({100 * cell['std']:.2f})" for cell in cells))
    if options.out:
        options.out.write_text(json.dumps({"seeds": options.seeds, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
