"""Measure instruction and preference tuning of a small base: scores before and after, five seeds.

    python tests/benchmarks/follow.py --model BASE [--data FOLDER] [--out FILE.json]

FOLDER holds instruction-data.json and instruction-data-with-preference.json of "Build a Large Language Model (From
Scratch)", 1,100 rows each; BASE is the model that tests/benchmarks/spam.py pretrains on books. Instructions: test
loss, exact match and token F1 of greedy answers. Preferences (DPO, from each seed's tuned model, with the same seed):
accuracy and margin on held-out pairs; their prompts were not used in the instruction tuning, as one hash splits both.
Learning rates are those with the lowest validation loss at seed 100. If stopped, run it again: it resumes.
"""

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from runs import recipe, slug

from scratch_gpt.evaluation.statistics import spread


INSTRUCT = ["--prompt-format", "chatml", "--batch-size", "8", "--max-new-tokens", "48", "--workers", "0"]
PREFER = ["--loss-type", "dpo", "--beta", "0.1", "--batch-size", "8", "--epochs", "1", "--workers", "0"]
RATES = {"instruct": ("5e-4", "1e-3", "2e-3"), "prefer": ("2e-5", "1e-4", "5e-4")}
SHOWN = {"instruct": ("loss", "exact_match", "f1"), "prefer": ("loss", "accuracy", "margin", "kl_from_reference")}


def tune(options, name: str, file: str, fields: list[str], base: Callable[[object], str]) -> dict:
    """Choose the rate with the lowest validation loss at seed 100, run the seeds, return scores before and after."""

    def run(folder: str, seed: int, rate: str, *more: str) -> dict:
        data = ["--model", base(seed), "--dataset", str(options.data / file), *fields, *more, *options.quick]
        return recipe(name, options.work / folder, *data, "--seed", str(seed), "--learning-rate", rate)

    def shown(results: dict) -> dict:
        return {metric: results[metric] for metric in SHOWN[name]}

    few = ["--answers", "1"] if name == "instruct" else []
    tried = {rate: run(slug("choose", name, rate), 100, rate, *few) for rate in RATES[name]}
    losses = {rate: found["results"]["validation"]["loss"] for rate, found in tried.items()}
    rate = min(losses, key=losses.get)
    found = [run(f"{name}-{seed}", seed, rate) for seed in range(options.seeds)]
    return {
        "learning_rate": rate,
        "validation_loss_at_seed_100": losses,
        **spread([{split: shown(each["results"][split]) for split in ("before/test", "test")} for each in found]),
        "seconds": sum(each["seconds"] for each in [*tried.values(), *found]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the pretrained base")
    parser.add_argument("--data", type=Path, default=Path("."), help="folder of the two files")
    parser.add_argument("--work", type=Path, default=Path("runs/follow"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_const", const=["--max-steps", "2"], default=[], help="two steps each, for a quick try"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    options.work = options.work / "quick" if options.quick else options.work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    instruct = tune(options, "instruct", "instruction-data.json", INSTRUCT, lambda seed: options.model)
    chosen = slug("choose", "instruct", instruct["learning_rate"])
    tuned = lambda seed: str(options.work / (chosen if seed == 100 else f"instruct-{seed}") / "model")  # noqa: E731
    prefer = tune(options, "prefer", "instruction-data-with-preference.json", PREFER, tuned)
    figures = {"seeds": options.seeds, "instruct": instruct, "prefer": prefer}
    for name, found in (("instruct", instruct), ("prefer", prefer)):
        minutes = "" if math.isnan(found["seconds"]) else f", {found['seconds'] / 60:.1f} minutes"
        print(f"\n{name}, learning rate {found['learning_rate']}{minutes}")
        for metric in SHOWN[name]:
            before, after = (found[key][metric] for key in ("before/test", "test"))
            cells = (f"{cell['mean']:8.4f} ({cell['std']:.4f})" for cell in (before, after))
            print(f"  {metric:20} {' -> '.join(cells)}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
