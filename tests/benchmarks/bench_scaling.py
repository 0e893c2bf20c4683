"""Measure time per token and memory of training as width, depth, context, vocabulary, batch and processes grow.

    python tests/benchmarks/bench_scaling.py [--out FILE.json]

Each row is a new process (or several, launched as torchrun does: gloo on a CPU) that trains one shape for some steps
on random tokens with the training loop of the package; one field differs from the base shape. Seconds are those of the
fastest step after the first two, memory is the rise of the highest resident set since before the model was made. Next
to them are the FLOPs per token and the bytes that costs.py computes.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


REPO = Path(__file__).resolve().parents[2]
BASE = {"width": 256, "depth": 4, "context": 128, "vocabulary": 8192, "batch": 8, "processes": 1}
GROWN = {
    "width": (128, 512),
    "depth": (2, 8),
    "context": (64, 256, 512),
    "vocabulary": (1024, 50257),
    "batch": (2, 32),
    "processes": (2,),
}


def measure(shape: dict, steps: int) -> dict | None:
    """Train one shape, in new processes; return its figures in the main process."""
    import torch
    from accelerate import Accelerator

    from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
    from scratch_gpt.data.rows.collate import collate_rows
    from scratch_gpt.data.rows.windows import Windows
    from scratch_gpt.train.accelerator import best_attention, best_precision
    from scratch_gpt.train.costs import memory, row_flops
    from scratch_gpt.train.loop import TrainingSettings, train_model
    from scratch_gpt.train.objectives import causal_lm
    from scratch_gpt.train.optimizers import adamw
    from scratch_gpt.utils.memory import keep_freed_memory

    keep_freed_memory()
    precision, length, batch = best_precision("cpu"), shape["context"], shape["batch"]
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    attention = best_attention("cpu", precision, length)
    config = ScratchGPTConfig.from_preset(
        "tiny",
        hidden_size=shape["width"],
        num_hidden_layers=shape["depth"],
        max_position_embeddings=length,
        vocab_size=shape["vocabulary"],
    )
    ids = torch.randint(config.vocab_size, (steps * batch * shape["processes"] * length + 1,))
    rows, began = Windows(ids.numpy(), length), []
    adamw(torch.nn.Linear(1, 1), 1.0, 0.0)  # loads parts of torch before memory is measured
    unit = 1 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    model = ScratchGPTForCausalLM._from_config(config, attn_implementation=attention).train()

    def learning_rate(step: int) -> float:
        began.append(time.perf_counter())
        return 1e-3

    with tempfile.TemporaryDirectory() as folder:
        train_model(
            *(accelerator, model, adamw(model, 1e-3, 0.1), learning_rate),
            rows=rows,
            collate=collate_rows,
            objective=causal_lm,
            settings=TrainingSettings(batch, max_steps=steps, log_every=10**9),
            steps=steps,
            output_dir=Path(folder) if shape["processes"] == 1 else Path(os.environ["BENCH_FOLDER"]),
        )
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    if not accelerator.is_main_process:
        return None
    tokens = batch * shape["processes"] * length
    seconds = min(b - a for a, b in zip(began[2:], began[3:], strict=False))
    counted = memory(
        config, batch, length, half=precision != "no", flash=attention == "sdpa", processes=shape["processes"]
    )
    flops = row_flops(config, length) / length
    return {
        **shape,
        "precision": precision,
        "microseconds_per_token": 1e6 * seconds / tokens,
        "flops_per_token": flops,
        "gflops_per_second": flops * tokens / seconds / 1e9,
        "bytes": rise,
        "bytes_counted": counted.peak,
    }


def run(shape: dict, steps: int) -> dict:
    """Start the processes for one shape and return its figures."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "BENCH_FOLDER": folder}
        free.close()
        threads = max(1, len(os.sched_getaffinity(0)) // shape["processes"]) if sys.platform == "linux" else 1
        ranks |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        command = [sys.executable, __file__, "--child", json.dumps(shape), "--steps", str(steps)]
        children = []
        for rank in range(shape["processes"]):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(shape["processes"])}
            several = {**ranks, **place, "ACCELERATE_USE_CPU": "true"} if shape["processes"] > 1 else ranks
            environment = {**os.environ, **several}
            children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        said = [child.communicate()[0] for child in children]
        if any(child.returncode for child in children):
            raise SystemExit(f"{shape} failed.")
    return json.loads(said[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "scaling.json")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=[*GROWN], choices=GROWN)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)  # the work of a child process
    options = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in the recipes
    if options.child:
        print(json.dumps(measure(options.child, options.steps)))
        return
    table = {"base": [run(BASE, options.steps)]}
    for name in options.only:
        table[name] = [run({**BASE, name: value}, options.steps) for value in GROWN[name]]
    print(f"{'':>12} {'':>7} {'us/token':>9} {'GFLOP/s':>8} {'MB':>7} {'counted':>8}")
    for name, rows in table.items():
        for row in rows:
            sizes = [row[field] / 1e6 for field in ("bytes", "bytes_counted")]
            time_of, rate = row["microseconds_per_token"], row["gflops_per_second"]
            value = row.get(name, "")
            print(f"{name:>12} {value:>7} {time_of:>9.1f} {rate:>8.1f} {sizes[0]:>7.0f} {sizes[1]:>8.0f}")
    options.out.write_text(json.dumps({"base": BASE, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
