"""Measure the cost of a checkpoint of GPT-2's 124M shape: how long training pauses, and how much slower it runs.

    python tests/benchmarks/bench_checkpoints.py [--out FILE.json]

Weights and AdamW's two moments in fp32, on the disk of the working folder. The pages quote the share of the run time
at one checkpoint a minute.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from scratch_gpt.train.checkpoints import BackgroundWriter, take_snapshot, write_checkpoint
from scratch_gpt.train.optimizers import adamw


REPO = Path(__file__).resolve().parents[2]
ROUNDS = 5
STILL, MEANWHILE = "in the background, standing still", "in the background, a step meanwhile"


def step(model, optimizer) -> float:
    """Run a training step of 2 rows of 128 tokens; return its seconds."""
    began = time.perf_counter()
    ids = torch.randint(50257, (2, 128))
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "checkpoints.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = ScratchGPTForCausalLM(ScratchGPTConfig.from_preset("gpt2")).train()
    optimizer = adamw(model, 1e-4, 0.1)
    seconds = {
        "step": [],
        "at once": [],
        STILL: [],
        MEANWHILE: [],
    }
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for n in range(ROUNDS):
            state = {"progress": {"step": n, "tokens": 0, "position": 0}, "record": {}}
            seconds["step"].append(step(model, optimizer))
            began = time.perf_counter()
            path = write_checkpoint(Path(folder), take_snapshot(model, optimizer, state, ""), keep=1)
            seconds["at once"].append(time.perf_counter() - began)
            size = sum(file.stat().st_size for file in path.iterdir())
            writer = BackgroundWriter()
            began = time.perf_counter()
            snapshot = take_snapshot(model, optimizer, state, "", copy=True)
            writer.start(lambda snapshot=snapshot: write_checkpoint(Path(folder), snapshot, keep=1))
            seconds[STILL].append(time.perf_counter() - began)
            while writer.thread.is_alive():
                seconds[MEANWHILE].append(step(model, optimizer))
            writer.finish()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    slower = median[MEANWHILE] / median["step"]
    steps = len(seconds[MEANWHILE]) / ROUNDS
    still = median[STILL]
    background = still + steps * (median[MEANWHILE] - median["step"])
    figures = {
        "bytes": size,
        "median_seconds": median,
        "steps_meanwhile": steps,
        "step_slowdown_meanwhile": slower,
        "share_at_one_a_minute": {"at once": median["at once"] / 60, "in the background": max(background, still) / 60},
    }
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
