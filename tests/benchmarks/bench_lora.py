"""Compare LoRA with full fine-tuning: peak memory, time per step and the share of parameters that is trained.

    python tests/benchmarks/bench_lora.py [--out FILE.json]

A classifier of two classes on GPT-2's 124M shape with random weights, 8 rows of 128 tokens, AdamW, no dropout, LoRA of
rank 16 on all linear layers; in the precision and with the attention that the recipes choose here, then in fp32; with
an unquantized or a quantized base. Each runs in a new process, in turns (the quantized ones once); the peak is that of
the whole process, including Python and torch. The pages quote the ratios.
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
from scratch_gpt.finetuning.lora import add_lora
from scratch_gpt.finetuning.trainable import count_parameters
from scratch_gpt.train.accelerator import best_attention, best_precision
from scratch_gpt.train.optimizers import adamw


REPO = Path(__file__).resolve().parents[2]
ROWS, LENGTH, STEPS = 8, 128, 4  # after one warm-up step
COSTS = ("peak_bytes", "step_seconds", "step_cpu_seconds")  # the last does not depend on other load
WAYS = ("full", "lora", "lora on int8", "lora on nf4")


def measure(way: str, precision: str, preset: str) -> dict:
    """Run one way in this process; return its peak memory, median step and trained parameters."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.manual_seed(0)
    rates = dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), 0.0)
    config = ScratchGPTConfig.from_preset(preset, num_labels=2, **rates)
    model = ScratchGPTForSequenceClassification(config).train()
    if way != "full":
        add_lora(model, rank=16, targets="all-linear", quantize=way.partition(" on ")[2] or None)
    model.set_attn_implementation(best_attention("cpu", precision, LENGTH))
    trained, total = count_parameters(model)
    optimizer = adamw(model, 1e-4, 0.1)
    ids, labels = torch.randint(config.vocab_size, (ROWS, LENGTH)), torch.arange(ROWS) % 2
    seconds, busy, losses = [], [], []
    for _ in range(1 + STEPS):
        began, began_busy = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - began_busy)
        losses.append(loss.item())
        del loss
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
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # the work of a child process
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.preset)))
        return
    best = best_precision("cpu")
    cases = [(way, precision) for precision in dict.fromkeys((best, "no")) for way in WAYS]
    found: dict[tuple[str, str], list[dict]] = {case: [] for case in cases}
    for n in range(options.rounds):
        for way, precision in cases:
            if n and " on " in way:
                continue
            command = [sys.executable, __file__, "--measure", way, precision, "--preset", options.preset]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            found[way, precision].append(json.loads(done.stdout.splitlines()[-1]))
    middle = {
        case: {
            **turns[0],
            **{name: statistics.median(turn[name] for turn in turns) for name in turns[0] if name != "losses"},
        }
        for case, turns in found.items()
    }
    summary = {
        "preset": options.preset,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "trained_share": middle["lora", best]["trained_parameters"] / middle["lora", best]["parameters"],
        "precisions": {
            "fp32" if precision == "no" else precision: {
                "lora_over_full": {
                    name: middle["lora", precision][name] / middle["full", precision][name] for name in COSTS
                },
                "ways": {way: middle[way, precision] for way in WAYS},
            }
            for precision in dict.fromkeys((best, "no"))
        },
    }
    options.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
