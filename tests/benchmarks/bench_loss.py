"""Measure the loss of `forward` against the plain form: peak memory above the inputs, and time.

    python tests/benchmarks/bench_loss.py [--out FILE.json]

The head has GPT-2's 124M shape (50,257 x 768) and random weights; every position has a target. `head` computes the
loss and both gradients from hidden states: `plain` is F.cross_entropy(F.linear(...).float(), ...); `ours` the sum of
linear_cross_entropy, `ours, each token` its losses of single tokens; `torch` is
torch.nn.functional.linear_cross_entropy in pieces. `step` is a complete training step with AdamW, including gradients
and both moments, with `labels` (plain) and `shift_labels` (ours). Each runs in a new process; the peak is the rise of
its resident memory, without the inputs (for a step: the weights) and without the memory that libraries take at their
first call. Time is processor time over all threads.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from scratch_gpt.modeling.linear_cross_entropy import CHUNK_BYTES, linear_cross_entropy
from scratch_gpt.train.optimizers import adamw


REPO = Path(__file__).resolve().parents[2]
WAYS = ("plain", "ours", "ours, each token", "torch")


def head_loss(way: str, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if way == "plain":
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    if way == "torch":
        options = torch.nn.LinearCrossEntropyOptions()
        if torch.is_autocast_enabled("cpu"):  # it ignores this option
            hidden, weight = hidden.bfloat16(), weight.bfloat16()
        return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)
    return linear_cross_entropy(hidden, weight, targets, summed=way == "ours").sum()


def resident(which: str) -> int:
    """Return the resident bytes of this process: now (VmRSS) or the peak so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def make_head(preset: str, tokens: int):
    """Return the inputs of a head, made in place so that they leave no peak."""
    config = ScratchGPTConfig.from_preset(preset)
    hidden = torch.empty(tokens, config.hidden_size).normal_().requires_grad_()
    weight = torch.empty(config.vocab_size, config.hidden_size).normal_(std=0.02).requires_grad_()
    return hidden, weight, torch.randint(config.vocab_size, (tokens,))


def measure(what: str, way: str, preset: str, batch: int, length: int, precision: str) -> dict:
    """Run one way in this process and return its peak memory and time."""
    torch.manual_seed(0)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def run_head(hidden, weight, targets):
        with autocast:
            loss = head_loss(way, hidden, weight, targets) / len(targets)
        loss.backward()
        return loss.detach()

    # Warm-up: the libraries allocate memory.
    run_head(*(torch.randn(64, 64, requires_grad=True) for _ in range(2)), torch.randint(64, (64,)))
    if what == "head":
        given = make_head(preset, batch * length)
        run = lambda: run_head(*given)  # noqa: E731
    else:
        dropouts = dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), 0.0)
        config = ScratchGPTConfig.from_preset(preset, **dropouts)
        model = ScratchGPTForCausalLM._from_config(config, attn_implementation="sdpa").train()
        ids = torch.randint(config.vocab_size, (batch, length))
        next_ids = F.pad(ids[:, 1:], (0, 1), value=-100)
        given = {"labels": ids} if way == "plain" else {"shift_labels": next_ids}
        optimizer = adamw(model, 1e-4, 0.1)

        def run():
            with autocast:
                loss = model(ids, **given).loss
            loss.backward()
            optimizer.step()
            return loss.detach()

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before, busy = resident("VmRSS"), time.process_time()
    loss = run()
    return {
        "peak_bytes": resident("VmHWM") - before,
        "cpu_seconds": time.process_time() - busy,
        "process_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "loss": loss.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "loss.json")
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--sizes", nargs="+", default=["2x256", "4x1024"], help="Rows x tokens of the head.")
    parser.add_argument("--steps", nargs="*", default=["4x1024"], help="Rows x tokens of complete steps.")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)  # the work of a child process
    options = parser.parse_args()
    if options.measure:
        what, way, batch, length, precision = options.measure
        print(json.dumps(measure(what, way, options.preset, int(batch), int(length), precision)))
        return
    jobs = [("head", size, WAYS) for size in options.sizes] + [("step", size, WAYS[:2]) for size in options.steps]
    figures: dict[str, dict] = {}
    for what, size, ways in jobs:
        for precision in ("fp32", "bf16"):
            found = figures[f"{what}, {size}, {precision}"] = {}
            for way in ways:
                command = [sys.executable, __file__, "--preset", options.preset]
                command += ["--measure", what, way, *size.split("x"), precision]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ)
                failed = {"failed": f"exit code {done.returncode}"}
                found[way] = failed if done.returncode else json.loads(done.stdout.splitlines()[-1])
                print(what, size, precision, way, found[way], flush=True)
            for way in ways[1:]:
                for name in ("peak_bytes", "cpu_seconds"):
                    if "failed" not in (found[way] | found["plain"]):
                        found[way][f"{name}_over_plain"] = found[way][name] / found["plain"][name]
    summary = {
        "preset": options.preset,
        "chunk_bytes": CHUNK_BYTES,
        "threads": torch.get_num_threads(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "torch": torch.__version__,
        "figures": figures,
    }
    options.out.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
