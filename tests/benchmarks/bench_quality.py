"""Measure the time until a small GPT reaches the loss of nanoGPT's README recipe on Tiny Shakespeare.

    python tests/benchmarks/bench_quality.py --data tinyshakespeare.txt [--minutes 5 15] [--out FILE.json]
    python tests/benchmarks/bench_quality.py --data tinyshakespeare.txt --choose "" "--learning-rate 6e-3" ...

The last tenth of the text is held out; each of its characters except the first is a target once, in windows of 64.
`reference` is the recipe for a CPU in nanoGPT's README with the plain model of reference.py: 4 layers, 4 heads, width
128, 12 rows of 64 characters drawn at random, 2,000 steps, AdamW at 1e-3 falling to 1e-4. `ours` is
training/pretrain.py with configs/shakespeare_char.yaml. Both take turns, each run in a new process with an empty
compile cache; its seconds are from the start of the process to its end. The reported loss is the mean of the seeds.
--minutes measures our loss after a schedule that fits into N minutes, with one seed.

--choose compares arguments of our recipe without the held-out text: on the first nine tenths of the text, of which a
tenth, most of Romeo and Juliet, is the validation text. (The held-out text also consists of other plays. The recipe
itself was chosen on the last tenth of the training text, and half of that play was trained on.) --out keeps the
results.
"""

import argparse
import json
import math
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from reference import GPT

from scratch_gpt.conversion.load import load_model
from scratch_gpt.tokenization.tokenizer import encode_batch, load_tokenizer


REPO = Path(__file__).resolve().parents[2]
CONFIG = REPO / "training" / "configs" / "shakespeare_char.yaml"
T = 64
LONG = "--learning-rate 8e-3"
LAST_WORDS = "Than this of Juliet and her Romeo.\n\n"


# --- The reference -----------------------------------------------------------------------------------------------


def train_reference(data: Path, out: Path, seed: int, steps: int, batch: int = 12) -> None:
    """Train with nanoGPT's README recipe for a CPU, without evaluations during training."""
    torch.manual_seed(seed)
    text = data.read_text(encoding="utf-8")
    ids = as_ids(text)[: held_out_from(text)]
    model = GPT(layers=4, width=128, heads=4, vocabulary=len(set(text)), length=T)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step in range(steps):
        falling = 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100)))
        rate = 1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 9e-4 * falling
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(ids) - T, (batch, 1))
        rows = ids[starts + torch.arange(T + 1)]
        model(rows[:, :-1], rows[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.save(model.state_dict(), out)


def as_ids(text: str) -> torch.Tensor:
    number = {char: n for n, char in enumerate(sorted(set(text)))}
    return torch.tensor([number[char] for char in text])


def held_out_from(text: str) -> int:
    return int(0.9 * len(text))


def move_play_to_end(text: str) -> str:
    """Move the end of Romeo and Juliet to the end of a text, as its last tenth."""
    end, tenth = text.index(LAST_WORDS) + len(LAST_WORDS), len(text) - held_out_from(text)
    return text[: end - tenth] + text[end:] + text[end - tenth : end]


# --- Losses ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mean_loss(losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ids: torch.Tensor) -> float:
    """Return the mean loss of all characters except the first, in nats; `losses` gives the mean of a batch (B, T)."""
    full = (len(ids) - 1) // T * T
    inputs, targets = ids[:-1], ids[1:]
    parts = [*zip(inputs[:full].view(-1, T).split(128), targets[:full].view(-1, T).split(128), strict=True)]
    if full < len(targets):
        parts.append((inputs[full:][None], targets[full:][None]))
    return sum(float(losses(x, y)) * y.numel() for x, y in parts) / len(targets)


def score_reference(file: Path, data: Path) -> float:
    text = data.read_text(encoding="utf-8")
    model = GPT(layers=4, width=128, heads=4, vocabulary=len(set(text)), length=T)
    model.load_state_dict(torch.load(file, weights_only=True))
    return mean_loss(model, as_ids(text)[held_out_from(text) :])


def score_ours(folder: Path, data: Path) -> float:
    text = data.read_text(encoding="utf-8")
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    ids = torch.tensor(encode_batch(tokenizer, [text[held_out_from(text) :]])[0])
    assert len(ids) == len(text) - held_out_from(text) and not (ids == tokenizer.unk_token_id).any()
    return mean_loss(lambda x, y: F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten()), ids)


# --- One run -----------------------------------------------------------------------------------------------------


def timed(command: list[str]) -> dict:
    """Run a command; return its seconds, and the share of the processors that other processes used meanwhile."""
    with tempfile.TemporaryDirectory() as cache:  # an empty compile cache
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
        busy, own, start = machine_seconds(), own_seconds(), time.perf_counter()
        subprocess.run(command, check=True, env=env)
        seconds = time.perf_counter() - start
    foreign = machine_seconds() - busy - (own_seconds() - own)
    return {"seconds": seconds, "foreign_load": max(0.0, foreign / seconds / psutil.cpu_count())}


def machine_seconds() -> float:
    now = psutil.cpu_times()
    return sum(now) - now.idle - getattr(now, "iowait", 0.0) - getattr(now, "guest", 0.0)


def own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime + time.process_time()


def run_reference(data: Path, folder: Path, seed: int, steps: int) -> dict:
    file = folder / f"reference-{seed}.pt"
    command = [sys.executable, __file__, "--data", str(data), "--reference", str(file), str(seed), str(steps)]
    found = {"seed": seed, "steps": steps, **timed(command)}
    return {**found, "loss": score_reference(file, data)}


def run_ours(data: Path, folder: Path, seed: int, arguments: list[str]) -> dict:
    run = folder / f"ours-{seed}"
    command = [sys.executable, str(REPO / "training" / "pretrain.py"), "--config", str(CONFIG)]
    command += ["--dataset", str(data), "--output-dir", str(run), "--overwrite", "true", "--seed", str(seed)]
    found = {"seed": seed, **timed([*command, *arguments])}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    learned = [line for line in lines if "loss" in line]
    pace = [learned[0]["tokens"] / learned[0]["step"] / line["tokens_per_second"] for line in learned]
    found |= {"steps": learned[-1]["step"], "step_seconds": statistics.median(pace)}
    return {**found, "loss": score_ours(run / "model", data)}


def summary(runs: list[dict]) -> dict:
    names = ("seconds", "loss", "foreign_load")
    means = {name: statistics.mean(run[name] for run in runs) for name in names}
    spreads = {f"{name}_std": statistics.stdev(run[name] for run in runs) for name in names[:2] if len(runs) > 1}
    return {**means, **spreads, "runs": runs}


def choose(data: Path, folder: Path, candidates: list[str], seeds: int, out: Path) -> None:
    """Print each candidate's mean loss on a play of the training text, and write it to `out`."""
    text = data.read_text(encoding="utf-8")
    train = folder / "train.txt"
    train.write_text(move_play_to_end(text[: held_out_from(text)]))
    for arguments in candidates:
        found = summary([run_ours(train, folder, seed, shlex.split(arguments)) for seed in range(seeds)])
        pace = statistics.mean(run["step_seconds"] for run in found["runs"])
        print(f"{found['loss']:.4f}  {found['seconds']:6.1f} s  {1e3 * pace:5.1f} ms a step  {arguments}", flush=True)
        figures = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        tried = {"arguments": arguments, "seeds": seeds, "loss": found["loss"], "seconds": found["seconds"]}
        figures["tried"] = [one for one in figures.get("tried", []) if one["arguments"] != arguments] + [tried]
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Tiny Shakespeare as one text file.")
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "quality.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="Keep the seeds' runs of --out; run only --minutes.")
    parser.add_argument("--minutes", type=float, nargs="*", default=[])
    parser.add_argument("--long", default=LONG, help="Arguments of the recipe for --minutes.")
    parser.add_argument("--reference-steps", type=int, default=2000)
    parser.add_argument("--arguments", default="", help="More arguments of the recipe, to try this benchmark.")
    parser.add_argument("--choose", nargs="+", help="Arguments of the recipe to compare.")
    parser.add_argument("--reference", nargs=3, help=argparse.SUPPRESS)  # the work of a child process
    options = parser.parse_args()
    if options.reference:
        file, seed, steps = options.reference
        train_reference(options.data, Path(file), int(seed), int(steps))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.choose:
            choose(options.data, folder, options.choose, options.seeds, options.out)
            return
        arguments = shlex.split(options.arguments)
        cpu = torch.cpu.get_capabilities().get("cpu_name")
        figures = {
            "threads": torch.get_num_threads(),
            "cpu": cpu,
            "torch": torch.__version__,
        }
        runs: dict[str, list[dict]] = {"reference": [], "ours": []}
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        figures |= before if options.keep else {"tried": before.get("tried", [])}
        for seed in range(0 if options.keep else options.seeds):
            runs["reference"].append(run_reference(options.data, folder, seed, options.reference_steps))
            runs["ours"].append(run_ours(options.data, folder, seed, arguments))
            for name in runs:
                print(name, runs[name][-1], flush=True)
            figures |= {name: summary(found) for name, found in runs.items()}
            figures["time_over_reference"] = figures["ours"]["seconds"] / figures["reference"]["seconds"]
            figures["reached"] = figures["ours"]["loss"] <= figures["reference"]["loss"]
            options.out.write_text(json.dumps(figures, indent=2) + "\n")
        for minutes in options.minutes:
            more = [*arguments, *shlex.split(options.long)]
            first = run_ours(options.data, folder, 0, [*more, "--max-steps", "200"])  # the current speed of a step
            beside = first["seconds"] - first["steps"] * first["step_seconds"]
            steps = str(int(0.92 * (60 * minutes - beside) / first["step_seconds"]))
            more += ["--max-steps", steps, "--eval-every", steps]
            figures[f"ours, {minutes:g} minutes"] = {"cpu": cpu, **run_ours(options.data, folder, 0, more)}
            print(minutes, figures[f"ours, {minutes:g} minutes"], flush=True)
            options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(
        f"{figures['reference']['loss']:.4f} in {figures['reference']['seconds']:.1f} s, ours "
        f"{figures['ours']['loss']:.4f} in {figures['ours']['seconds']:.1f} s: {figures['time_over_reference']:.0%}"
    )


if __name__ == "__main__":
    main()
