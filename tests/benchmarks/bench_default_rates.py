"""Compare the default learning rates with a sweep, on bases of two widths and four tasks.

    python tests/benchmarks/bench_default_rates.py --data FOLDER [--work FOLDER] [--out FILE.json]

FOLDER has books/, classification/sms_spam.tsv, instruction-data.json and instruction-data-with-preference.json. The
bases learn the first four fifths of each book. The task `books` is to name the book of a passage from its last fifth.
All other options of the tuning runs that concern learning are the defaults. If stopped, run it again: it keeps
finished runs. `--only PATTERN` runs the part with such names.
"""

import argparse
import json
import os
import random
import re
import shutil
import statistics
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState

from scratch_gpt_training import classify, instruct, prefer, pretrain
from scratch_gpt_training.support.run.defaults import default_rate


MODULES = {"classify": classify, "instruct": instruct, "prefer": prefer, "pretrain": pretrain}
WIDTHS = {
    128: ["--max-steps", "540"],
    384: ["--max-steps", "240", "--config-overrides", "hidden_size=384,num_hidden_layers=2,num_attention_heads=6"],
}
TASKS = {"spam": "classify", "books": "classify", "instruct": "instruct", "prefer": "prefer"}
FACTORS = (0.2, 0.5, 1, 2, 5)  # of the default rate
SEEDS = {128: {"full": 3, "random": 3}, 384: {}}  # of the others 1
# Changes of one default each, at the default rate.
CHANGES = {
    "epochs 3": ["--epochs", "3"],
    "batch 4": ["--batch-size", "4"],
    "batch 16": ["--batch-size", "16"],
    "no warm-up": ["--warmup-steps", "0"],
    "warm-up a fifth": ["--warmup-steps", "200"],
}
PASSAGES, WORDS = 150, 60  # of each book at most, and words in each
SAVING = ["--checkpoint-every", "1000000", "--keep", "1", "--mixed-precision", "no"]


# --- Data --------------------------------------------------------------------------------------------------------


def make_data(options) -> None:
    """Write the books' first parts and passages of their last parts."""
    folder, rows = options.work / "books", []
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((options.data / "books").glob("*.txt")):
        text = file.read_text(encoding="utf-8")
        cut = text.find("\n\n", len(text) * 4 // 5)
        (folder / file.name).write_text(text[:cut], encoding="utf-8")
        words = text[cut:].split()
        passages = [" ".join(words[start : start + WORDS]) for start in range(0, len(words) - WORDS + 1, WORDS)]
        random.Random(0).shuffle(passages)
        rows += [{"text": passage, "label": file.stem} for passage in passages[:PASSAGES]]
    (options.work / "books.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def task_options(options, task: str) -> list[str]:
    """Return the options that name a task's data; none of them concerns training."""
    if task == "spam":
        file = options.data / "classification" / "sms_spam.tsv"
        return ["--dataset", str(file), "--column-names", "label,text", "--balance", "undersample"]
    if task == "books":
        return ["--dataset", str(options.work / "books.jsonl")]
    if task == "instruct":
        return [
            "--dataset",
            str(options.data / "instruction-data.json"),
            "--prompt-format",
            "chatml",
            "--answers",
            "0",
        ]
    return ["--dataset", str(options.data / "instruction-data-with-preference.json")]


# --- Runs --------------------------------------------------------------------------------------------------------


def run(options, name: str, task: str, *words: str, keep_model: bool = False) -> dict:
    """Run a recipe in this process, or read its results; return the scores of its splits and its learning rate."""
    folder = options.work / name
    if not (folder / "evaluation.json").exists():
        if re.search(options.only, name) is None:
            return {}
        shutil.rmtree(folder, ignore_errors=True)
        AcceleratorState._reset_state()
        PartialState._reset_state()
        MODULES[task].main([*words, "--output-dir", str(folder), *SAVING, *options.quick])
        for left in ("checkpoints", *([] if keep_model else ["model", "last", "adapter"])):
            shutil.rmtree(folder / left, ignore_errors=True)
    results = json.loads((folder / "evaluation.json").read_text())["results"]
    return {"test": results.get("test", results["validation"]), "validation": results["validation"]}


def tune(options, width: int, task: str, tune: str, rate: float | None, seed: int, *more: str) -> dict:
    """Tune a base; with `tune` "random" train random weights of its shape."""
    base = str(options.work / f"base-{width}" / "model")
    if task == "prefer":
        base = str(options.work / f"{width}-prefer-base" / "model")
        run(options, f"{width}-prefer-base", "instruct", "--model", str(options.work / f"base-{width}" / "model"),
            *task_options(options, "instruct"), keep_model=True)  # fmt: skip
    start = ["--model", base, "--tune", tune]
    if tune == "random":
        shape = WIDTHS[width][2:]
        start = ["--preset", "tiny", "--tokenizer", base, *shape]
    given = [] if rate is None else ["--learning-rate", str(rate)]
    name = f"{width}-{task}-{tune}-{'default' if rate is None else f'{rate:g}'}-{'-'.join(more).strip('-')}-{seed}"
    data = task_options(options, task)
    return run(options, name, TASKS[task], *start, *data, *given, "--seed", str(seed), *more)


def score(task: str, found: dict) -> float:
    """Return the figure of a task: accuracy in per cent (also of pairs), or the loss of instruction tuning."""
    return found["test"]["loss"] if task == "instruct" else 100 * found["test"]["accuracy"]


def seeds_of(options, width: int, tune_kind: str) -> int:
    return min(SEEDS[width].get(tune_kind, 1), options.seeds)


def sweep(options, width: int, task: str, kind: str) -> dict | None:
    """Return the figures of a sweep, and of the default rate, which is one of its rates."""
    default = default_rate(TASKS[task], kind, width, from_scratch=kind == "random").value
    grid = (default,) if kind == "random" else [float(f"{default * factor:.3g}") for factor in FACTORS]
    names = [re.fullmatch(rf"{width}-{task}-{kind}-([\d.e-]+\d)--\d", path.name) for path in options.work.iterdir()]
    grid = sorted({*grid, *(float(name[1]) for name in names if name)})  # also other rates that have been tried
    figures = {}
    for rate in grid:
        numbers = range(seeds_of(options, width, kind))
        found = [tune(options, width, task, kind, None if rate == default else rate, seed) for seed in numbers]
        found = [one for one in found if one]
        if found:
            values = [score(task, one) for one in found]
            losses = [one["validation"]["loss"] for one in found]
            figures[f"{rate:g}"] = {"figures": values, "validation_loss": statistics.mean(losses)}
    return {"default": f"{default:g}", "rates": figures} if figures else None


def changes(options, width: int, task: str) -> dict:
    """Return the figures of a change of one default each."""
    found = {name: tune(options, width, task, "full", None, 0, *words) for name, words in CHANGES.items()}
    return {name: score(task, one) for name, one in found.items() if one}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the test data")
    parser.add_argument("--work", type=Path, default=Path("runs/default_rates"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="run only what has a name with this pattern, such as 128-spam-full")
    parser.add_argument(
        "--quick", action="store_const", const=["--max-steps", "2"], default=[], help="two steps each, for a quick try"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    options.work = options.work / "quick" if options.quick else options.work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    make_data(options)
    figures = {"bases": {}, "sweeps": {}, "changes": {}}
    for width, shape in WIDTHS.items():
        words = ["--dataset", str(options.work / "books"), "--preset", "tiny", "--batch-size", "16", *shape]
        base = run(options, f"base-{width}", "pretrain", *words, "--eval-batches", "20", keep_model=True)
        if not base:
            continue
        figures["bases"][width] = base["validation"]
        for task in TASKS:
            kinds = ("full", "random", "last-block", "lora") if width == 128 else ("full",)
            for kind in kinds[:1] if task == "prefer" else kinds:
                if found := sweep(options, width, task, kind):
                    figures["sweeps"][f"{width} {task} {kind}"] = found
            if width == 128 and task in ("spam", "books") and (found := changes(options, width, task)):
                figures["changes"][task] = found
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
