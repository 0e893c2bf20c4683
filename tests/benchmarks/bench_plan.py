"""Compare the memory and time that --plan predicts with runs of the same options, for three sizes.

    python tests/benchmarks/bench_plan.py [--out FILE.json] [--sizes tiny small gpt2]

A run trains for some steps on generated text, without evaluations; its time is the median of its steps except the
first few (from metrics.jsonl), its memory the highest resident set of the process. Plans and runs take turns, each in
a new process. The pages quote the ratios, planned over measured; the target is 0.85 to 1.15.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


REPO = Path(__file__).resolve().parents[2]
COMMON = "--max-length {length} --batch-size {rows} --vocab-size 1024 --drop-tail true --validation-fraction 0 "
COMMON += "--dropout 0 --log-every 1 --device cpu --max-steps {steps}"
SIZES = {  # a small vocabulary for the tokenizer, which then trains quickly; the model's is set below
    "tiny": "--preset tiny " + COMMON.format(length=128, rows=8, steps=60),
    "small": "--preset small --config-overrides vocab_size=50257 " + COMMON.format(length=256, rows=8, steps=12),
    "gpt2": "--preset gpt2 --config-overrides vocab_size=50257 " + COMMON.format(length=256, rows=2, steps=12),
}
WARM = 3  # steps
LIMITS = (0.85, 1.15)


def words_of(size: str, folder: str) -> list[str]:
    return [*SIZES[size].split(), "--dataset", f"{folder}/text.txt", "--output-dir", f"{folder}/run"]


def plan(size: str, folder: str) -> dict:
    """Print the plan of a size, in a new process."""
    from scratch_gpt_training import pretrain
    from scratch_gpt_training.support.command_line import parse
    from scratch_gpt_training.support.run import planning

    found = planning.make_plan(parse(pretrain.PretrainRun, words_of(size, folder)))
    return {**as_json(found), "seconds": found.step_seconds, "bytes": found.peak}


def as_json(found) -> dict:
    """Convert a plan to JSON."""
    return {**found._asdict(), "memory": found.memory._asdict()}


def measure(size: str, folder: str) -> dict:
    """Run the training of a size, in a new process."""
    from scratch_gpt_training import pretrain

    pretrain.main([*words_of(size, folder), "--overwrite", "true"])
    lines = [
        json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    lines = [line for line in lines if "tokens_per_second" in line]
    tokens = [b["tokens"] - a["tokens"] for a, b in zip(lines, lines[1:], strict=False)]
    seconds = [count / line["tokens_per_second"] for count, line in zip(tokens, lines[1:], strict=True)]
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return {
        "seconds": statistics.median(seconds[WARM - 1 :]),
        "seconds_spread": [min(seconds[WARM - 1 :]), max(seconds[WARM - 1 :])],
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        **{name: lines[-1][name] for name in ("mfu", "data_wait")},
    }


def in_child(what: str, size: str, folder: str) -> dict:
    command = [sys.executable, __file__, "--child", what, size, folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ})
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "plan.json")
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # the work of a child process
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.child:
        sys.path.insert(0, str(REPO / "tests" / "helpers"))
        what, size, folder = options.child
        print(json.dumps({"plan": plan, "run": measure}[what](size, folder)))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(0)
        words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(2000)]
        Path(folder, "text.txt").write_text(" ".join(draw.choices(words, k=60_000)), encoding="utf-8")
        for size in options.sizes:
            turns = [{what: in_child(what, size, folder) for what in ("plan", "run")} for _ in range(options.rounds)]
            found = figures[size] = {}
            for name in ("seconds", "bytes"):
                planned, measured = (statistics.median(turn[what][name] for turn in turns) for what in ("plan", "run"))
                ratio = planned / measured
                is_close = LIMITS[0] <= ratio <= LIMITS[1]
                found[name] = {"planned": planned, "measured": measured, "ratio": ratio, "within": is_close}
                print(
                    f"{size:>6} {name:>8}: planned {planned:.4g}, measured {measured:.4g}, ratio {ratio:.2f}",
                    flush=True,
                )
            found["turns"] = turns
    options.out.write_text(json.dumps({"limits": LIMITS, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
