"""Measure time and memory of loading GPT-2 (124M): our class against stock transformers, on the same files.

    python tests/benchmarks/bench_loading.py [--rounds 7] [--out FILE.json]

Each load runs in a new process after the imports; the two classes take turns. "load" is `from_pretrained`, where
stock transformers only maps the file and reads it at first use; "logits" therefore also includes the first logits, of
eight tokens. Memory is the highest resident set up to that point. The weights are random: only their sizes matter.

It also measures start times: `import scratch_gpt` after torch and transformers' GPT-2 class (target: 0.1 s), and
`python training/X.py --help` of every recipe, from the start of its process to its end (target: 2 s).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


CLASSES = ("stock", "ours")
FIGURES = {
    "load_seconds": "load, s",
    "load_mib": "load, MiB",
    "logits_seconds": "logits, s",
    "logits_mib": "logits, MiB",
}


def in_child(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make(folder: str) -> None:
    """Save a random GPT-2. Run in a child process: children inherit the peak memory of their parent."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)


def load(name: str, folder: str) -> None:
    """Load a model and use it, in a child process; print the figures."""
    import torch
    import transformers

    import scratch_gpt  # for both classes, so that both start with the same memory

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_class = transformers.GPT2LMHeadModel if name == "stock" else scratch_gpt.ScratchGPTForCausalLM
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    figures, start = {}, time.perf_counter()

    def note(stage: str) -> None:
        figures[f"{stage}_seconds"] = time.perf_counter() - start
        figures[f"{stage}_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    model = model_class.from_pretrained(folder)
    note("load")
    with torch.no_grad():
        model(torch.arange(8)[None])
    note("logits")
    print(json.dumps(figures))


def measure(rounds: int) -> dict[str, list[dict]]:
    """Run `rounds` loads of each class in turns, after one of each that only fills the file cache."""
    runs = {name: [] for name in CLASSES}
    with tempfile.TemporaryDirectory() as folder:
        in_child("--make", folder)
        for number in range(rounds + 1):
            for name in CLASSES if number % 2 else CLASSES[::-1]:
                figures = json.loads(in_child("--load", name, folder).splitlines()[-1])
                if number:
                    runs[name].append(figures)
    return runs


def imported() -> None:
    """Time the import of our package after its dependencies, in a child process."""
    import torch  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: F401

    start = time.perf_counter()
    import scratch_gpt  # noqa: F401

    print(time.perf_counter() - start)


def starts(rounds: int) -> dict[str, dict[str, float]]:
    """Return the seconds of our import after that of transformers, and of each recipe's --help."""
    training = Path(__file__).resolve().parents[2] / "training"
    recipes = sorted(file for file in training.glob("*.py") if "def main(" in file.read_text())
    found: dict[str, list[float]] = {"import scratch_gpt": [], **{f"{file.name} --help": [] for file in recipes}}
    for number in range(rounds + 1):
        seconds = {"import scratch_gpt": float(in_child("--imported").splitlines()[-1])}
        for file in recipes:
            start = time.perf_counter()
            subprocess.run([sys.executable, str(file), "--help"], check=True, stdout=subprocess.DEVNULL)
            seconds[f"{file.name} --help"] = time.perf_counter() - start
        for name, value in seconds.items() if number else ():
            found[name].append(value)
    return {n: {"median": statistics.median(v), "min": min(v), "max": max(v)} for n, v in found.items()}


def summary(runs: dict[str, list[dict]]) -> dict:
    """Return median, lowest and highest of each figure, and ours / stock."""
    result = {}
    for figure in FIGURES:
        values = {name: [run[figure] for run in runs[name]] for name in CLASSES}
        spreads = {n: {"median": statistics.median(v), "min": min(v), "max": max(v)} for n, v in values.items()}
        result[figure] = {**spreads, "ratio": spreads["ours"]["median"] / spreads["stock"]["median"]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted loads of each class")
    parser.add_argument("--out", type=Path, help="write every run and the summary to this JSON file")
    parser.add_argument("--make", help=argparse.SUPPRESS)  # --make and --load are arguments of the child processes
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--imported", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.make:
        return make(options.make)
    if options.load:
        return load(*options.load)
    if options.imported:
        return imported()

    runs = measure(options.rounds)
    figures = summary(runs)
    print(f"{options.rounds} rounds: median (lowest - highest)")
    print(f"{'':12} {'stock':>24} {'ours':>24} {'ratio':>7}")
    for figure, label in FIGURES.items():
        digits = 3 if figure.endswith("seconds") else 0
        spreads = [figures[figure][name] for name in CLASSES]
        cells = [f"{s['median']:.{digits}f} ({s['min']:.{digits}f} - {s['max']:.{digits}f})" for s in spreads]
        print(f"{label:12} {cells[0]:>24} {cells[1]:>24} {figures[figure]['ratio']:>7.3f}")
    seconds = starts(options.rounds)
    for name, spread in seconds.items():
        print(f"{name:>26} {spread['median']:.3f} s ({spread['min']:.3f} - {spread['max']:.3f})")
    if options.out:
        content = {"rounds": options.rounds, "figures": figures, "starts": seconds, "runs": runs}
        options.out.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
