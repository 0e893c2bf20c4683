"""Measure the cost of the training loop: the same micro-batches in a bare loop and in `train_model`, in turns.

    python tests/benchmarks/bench_loop.py [--out FILE.json]

The bare loop has the same model, optimizer, precision and batches, which are made before: forward, backward, clip and
step only. Ours makes its batches during training, seeds each step, checks and sums losses, measures time and writes a
line every ten steps.

The step time of a real model varies by more than 1 % between turns, so both loops run a model of one block of width 8
on rows of the same length: the difference of two consecutive turns is the cost of the loop, including reading rows.
The share is the median of these differences (and their quartiles) over a step of the preset in our loop; the target
is 1 %. `fetch` is the time of reading a loss from the device, which ours does in every step to skip non-finite steps.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import Windows
from scratch_gpt.runs.folder import read_metrics
from scratch_gpt.train.accelerator import best_attention, best_precision
from scratch_gpt.train.batches import BatchLayout, Steps, to_device
from scratch_gpt.train.loop import TrainingSettings, train_model
from scratch_gpt.train.objectives import causal_lm
from scratch_gpt.train.optimizers import adamw, clip_gradients


REPO = Path(__file__).resolve().parents[2]
WARM, RATE = 3, 1e-3
NARROW = {"vocab_size": 64, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
MORE = 2  # factor for the number of its steps


def make_model(options, device: str, precision: str, changes: dict):
    torch.manual_seed(0)
    config = ScratchGPTConfig.from_preset(options.preset, **changes)
    attention = best_attention(device, precision, config.max_position_embeddings)
    return ScratchGPTForCausalLM._from_config(config, attn_implementation=attention).train()


def clocks() -> tuple[float, float]:
    """Return the clock and the processor time over all threads; the latter does not depend on other load."""
    return time.perf_counter(), time.process_time()


def per_step(first: tuple, last: tuple, options) -> tuple[float, float]:
    return tuple((b - a) / (options.steps - WARM) for a, b in zip(first, last, strict=True))


def run_bare(accelerator, model, rows, options) -> tuple[float, float]:
    """Run the bare loop; return the seconds of a step by both clocks."""
    model, optimizer = accelerator.prepare(model, adamw(model, RATE, 0.1))
    steps = Steps(rows, collate_rows, BatchLayout(options.batch_size, options.accumulation_steps), seed=0)
    batches = [[batch for batch, _ in steps[n].micro_batches] for n in range(options.steps)]
    for n, micro_batches in enumerate(batches):
        if n == WARM:
            wait(accelerator)
            start = clocks()
        count = sum(batch["shift_labels"].numel() for batch in micro_batches)
        for batch in micro_batches:
            batch = to_device(batch, accelerator.device)
            accelerator.backward(model(**batch, num_items_in_batch=1, use_cache=False).loss / count)
        clip_gradients(model.parameters(), optimizer.optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    wait(accelerator)
    return per_step(start, clocks(), options)


def run_ours(accelerator, model, rows, options) -> tuple[tuple[float, float], list[dict]]:
    """Run our loop; return the seconds of a step by both clocks (start to start), and the metrics written."""
    began = []

    def learning_rate(step: int) -> float:
        wait(accelerator)
        began.append(clocks())
        return RATE

    settings = TrainingSettings(options.batch_size, options.accumulation_steps, max_steps=options.steps + 1)
    with tempfile.TemporaryDirectory() as folder:
        train_model(
            *(accelerator, model, adamw(model, RATE, 0.1), learning_rate),
            rows=rows,
            collate=collate_rows,
            objective=causal_lm,
            settings=settings,
            steps=options.steps + 1,
            output_dir=Path(folder),
        )
        lines = read_metrics(Path(folder) / "metrics.jsonl")
    return per_step(began[WARM], began[-1], options), lines


def wait(accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "loop.json")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulation-steps", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = best_precision(device)
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
    context = ScratchGPTConfig.from_preset(options.preset).max_position_embeddings
    ids = torch.randint(NARROW["vocab_size"], (1000 * context + 1,), generator=torch.Generator().manual_seed(0))
    rows = Windows(ids.numpy(), context)
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": [], "step": []}
    many = argparse.Namespace(**{**vars(options), "steps": MORE * options.steps})
    for n in range(options.rounds):
        for way in ("bare", "ours") if n % 2 else ("ours", "bare"):
            model = make_model(options, device, precision, NARROW)
            if way == "bare":
                found[way].append(run_bare(accelerator, model, rows, many))
            else:
                found[way].append(run_ours(accelerator, model, rows, many)[0])
    waits = []
    for _ in range(3):
        model = make_model(options, device, precision, {"vocab_size": options.vocab_size})
        seconds, lines = run_ours(accelerator, model, rows, options)
        found["step"].append(seconds)
        waits += [line["data_wait"] for line in lines]
    loss = torch.zeros((), device=accelerator.device)
    start = time.perf_counter()
    for _ in range(1000):
        float(loss)
    fetch = (time.perf_counter() - start) / 1000
    step = [*map(statistics.median, zip(*found["step"], strict=True))]
    of_loop, shares, quartiles = [], [], []
    for clock in (0, 1):
        pairs = zip(found["ours"], found["bare"], strict=True)
        differences = [ours[clock] - bare[clock] for ours, bare in pairs]
        of_loop.append(statistics.median(differences))
        shares.append(of_loop[clock] / step[clock])
        quartiles.append([seconds / step[clock] for seconds in statistics.quantiles(differences)[::2]])
    summary = {
        "preset": options.preset,
        "device": device,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "batch_size": options.batch_size,
        "accumulation_steps": options.accumulation_steps,
        "seconds_of_a_step": step,
        "seconds_of_the_loop": of_loop,
        "share": shares[0],
        "share_of_cpu_seconds": shares[1],
        "share_quartiles": quartiles,
        "data_wait": statistics.median(waits),
        "fetch_seconds": fetch,
        "rounds": found,
    }
    options.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps({name: value for name, value in summary.items() if name != "rounds"}, indent=2))


if __name__ == "__main__":
    main()
