"""What LoRA costs beside full fine-tuning: peak memory, time per step and the share that is trained.

    python tests/benchmarks/bench_lora.py [--out FILE.json]

A classifier of two classes on GPT-2's 124M shape with random weights, 8 rows of 128 tokens, AdamW, fp32, LoRA of rank
16 on all linear layers, its base in fp32 or quantised. A fresh process for each, in turns (the quantised once);
the peak is that of the whole process. README.md quotes the ratios.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from scratch_gpt import ScratchGPTConfig, ScratchGPTForSequenceClassification
from scratch_gpt.adapters import add_lora, count_parameters
from scratch_gpt.optimizers import adamw


REPO = Path(__file__).resolve().parents[2]
ROWS, LENGTH, STEPS = 8, 128, 2  # and one step to warm up
COSTS = ("peak_bytes", "step_seconds", "step_cpu_seconds")  # the last does not see what else the machine does
WAYS = ("full", "lora", "lora on int8", "lora on nf4")


def measure(way: str, preset: str) -> dict:
    """One way in this process: its peak, its median step and what it trains."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.manual_seed(0)
    config = ScratchGPTConfig.from_preset(preset, num_labels=2)
    model = ScratchGPTForSequenceClassification(config).train()
    if way != "full":
        add_lora(model, rank=16, targets="all-linear", quantize=way.partition(" on ")[2] or None)
    trained, total = count_parameters(model)
    optimizer = adamw(model, 1e-4, 0.1)
    ids, labels = torch.randint(config.vocab_size, (ROWS, LENGTH)), torch.arange(ROWS) % 2
    seconds, busy, losses = [], [], []
    for _ in range(1 + STEPS):
        began, began_busy = time.perf_counter(), time.process_time()
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - began_busy)
        losses.append(loss.item())
    return {
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "peak_bytes_of_imports": 1024 * before,
        "step_seconds": statistics.median(seconds[1:]),
        "step_cpu_seconds": statistics.median(busy[1:]),
        "trained_parameters": trained,
        "parameters": total,
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "lora.json")
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)  # what the fresh processes do
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.preset)))
        return
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for n in range(options.rounds):
        for way in WAYS if n == 0 else WAYS[:2]:
            command = [sys.executable, __file__, "--measure", way, "--preset", options.preset]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    figures = {
        way: {
            **turns[0],
            **{name: statistics.median(turn[name] for turn in turns) for name in turns[0] if name != "losses"},
        }
        for way, turns in found.items()
    }
    full, lora = figures["full"], figures["lora"]
    summary = {
        "preset": options.preset,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "lora_over_full": {name: lora[name] / full[name] for name in COSTS},
        "trained_share": lora["trained_parameters"] / lora["parameters"],
        "ways": figures,
    }
    options.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
