"""Time a training step: ours and named peers on the same work, in turns on an otherwise idle machine.

    python tests/benchmarks/bench_training.py [--rounds 7] [--only ours,reference] [--workloads char] [--quick]

Writes tests/benchmarks/training.json and training.png and prints the table. Workloads that are not selected keep their
values from the file if these are from the same machine. Linux only (it reads /proc/stat).

A row is a peer in one setting. Workers (peers.py) are started once, each in its peer's environment, and take turns
A B C A B C, never two at once. In a turn every row of a workload trains on the same number of tokens. The first round
is warm-up and is dropped. FOREIGN limits other load: if other processes (and the hypervisor) used more than that share
of the machine's processor time during a turn, the round is dropped for all rows. If more than a third of the rounds
are dropped, or fewer than 7 remain, the table is marked as no claim.
"""

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import NamedTuple

from allocator import TCMALLOC
from load import FOREIGN, foreign_share, processor_seconds
from peers import Setting, Shape


HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
CLAIM_ROUNDS = 7
PROFILED = 9  # steps
TORCH = "torch==2.13.0"
# The dependencies of litgpt that are imported here; llms-from-scratch's models import torch only.
PEERS_NEED = ("lightning==2.6.6", "jsonargparse[signatures]==4.41.0", "psutil==7.2.2", "safetensors", "tokenizers")
PEERS_NEED += ("huggingface-hub<1.4", "pyyaml", "tqdm", "requests")
NOT_INHERITED = re.compile(r"LD_PRELOAD|THP_|OMP_|MKL_|KMP_|MALLOC_|TORCH|ATEN_|DNNL_|ONEDNN_|PYTORCH_")


class Row(NamedTuple):
    peer: str  # a name in peers.py
    setting: Setting
    environment: str = "plain"  # see `environments`
    counts: bool = True  # whether ours is compared with it


BEST = Setting("bf16", fused=True, compile=True)
EAGER = Setting("bf16", fused=True)
ROWS = {
    "reference": Row("reference", Setting()),
    "reference, best": Row("reference", BEST),
    "reference, best, our allocator": Row("reference", BEST, "best", counts=False),
    "ours, out of the box": Row("ours", Setting("auto", fused=True), "recipe"),
    "ours, best": Row("ours", EAGER, "best"),
    "ours, best, compiled": Row("ours", BEST, "best"),
    "transformers, Trainer's default": Row("transformers", Setting(fused=True)),
    "transformers, best": Row("transformers", BEST),
    "litgpt, default": Row("litgpt", Setting("bf16", compile=True)),
    "litgpt, best": Row("litgpt tied", BEST),
    "llms-from-scratch, default": Row("llms-from-scratch", Setting()),
    "llms-from-scratch, best": Row("llms-from-scratch fast", BEST),
}
OURS, BOX = ("ours, best", "ours, best, compiled"), "ours, out of the box"


class Workload(NamedTuple):
    title: str
    shape: Shape
    steps: int  # steps of a turn
    targets: dict[str, float]  # required speed of our best as a multiple of each row's; "ceiling" is a fraction
    without: tuple[str, ...] = ()  # rows that are skipped


WORKLOADS = {
    "middle": Workload(
        "6 layers, 384 wide, vocabulary 50,257",
        Shape(layers=6, width=384, heads=6, vocabulary=50257, length=256, batch=8),
        1,
        {"reference": 2.9, "the best setting of any peer": 1.15, "ceiling": 0.6},
    ),
    "gpt2": Workload(
        "GPT-2, 124M",
        Shape(layers=12, width=768, heads=12, vocabulary=50257, length=256, batch=2),
        1,
        {"reference": 3.0, "transformers, Trainer's default": 2.3, "ceiling": 0.6},
        without=("reference, best, our allocator",),
    ),
    "char": Workload(
        "10M, characters (vocabulary 65)",
        Shape(layers=6, width=384, heads=6, vocabulary=65, length=256, batch=8),
        2,
        {"reference": 1.8},
        without=("reference, best, our allocator",),
    ),
}
BOX_SHARE = 0.8  # share of each target that ours must reach out of the box
LOSSES = (Shape(layers=6, width=384, heads=6, vocabulary=256, length=128, batch=4), 100)
TINY = Shape(layers=1, width=16, heads=2, vocabulary=65, length=16, batch=2)


def count_flops(shape: Shape) -> float:
    """Return the floating-point operations of a step.

    These are 6 per token for each weight of a matrix product, including the head, and 12 * layers * width * length per
    token for attention's two products over the full square (Chowdhery et al. 2022, "PaLM", appendix B).
    """
    weights = 12 * shape.layers * shape.width**2 + shape.vocabulary * shape.width
    attention = 12 * shape.layers * shape.width * shape.length
    return (6 * weights + attention) * shape.batch * shape.length


# --- Environments ------------------------------------------------------------------------------------------------


def environments() -> dict[str, dict[str, str]]:
    """Return the environment variables of workers: none; those of the recipes; or tcmalloc, if installed."""
    recipe = {"THP_MEM_ALLOC_ENABLE": "1"}
    return {"plain": {}, "recipe": recipe, "best": {"LD_PRELOAD": TCMALLOC} if TCMALLOC else recipe}


def peers_python() -> Path:
    """Return the Python of .bench/peers; create it if missing: first torch, then the peers without dependencies."""
    folder = REPO / ".bench" / "peers"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"Setting up {folder} (torch and two peers, some minutes the first time)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, TORCH], check=True)
        subprocess.run([*install, TORCH, *PEERS_NEED], check=True)
        subprocess.run([*install, "--no-deps", "-r", HERE / "peers-requirements.txt"], check=True)
        (folder / "made").touch()
    show = "import torch; print(torch.__version__, torch.version.cuda)"
    version = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.split()
    if version[0].partition("+")[0] != TORCH.partition("==")[2] or version[1] != "None":
        raise SystemExit(f"{folder} has torch {' '.join(version)}, but needs {TORCH} for CPUs. Remove the folder.")
    return python


# --- Turns -------------------------------------------------------------------------------------------------------


class Worker:
    """A process of peers.py; `turn` requests a turn and waits for the result."""

    def __init__(self, python: Path, peer: str, shape: Shape | None, settings: dict, environment: dict[str, str]):
        self.peer = peer
        given = {"peer": peer, "shape": shape and asdict(shape), "settings": settings}
        kept = {name: value for name, value in os.environ.items() if not NOT_INHERITED.match(name)}
        self.process = subprocess.Popen(
            [python, HERE / "peers.py", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**kept, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", **environment},
        )

    def wait(self) -> None:
        """Wait until its model is built."""
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.peer}: its worker ended with exit code {self.process.wait()}.")

    def turn(self, row: str, number: int) -> dict:
        """Run a turn and return its times; "foreign" is the share of the machine that other processes used."""
        before = processor_seconds()
        self.process.stdin.write(json.dumps({"row": row, "number": number}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{row}: its worker ended with exit code {self.process.wait()}.")
        taken = json.loads(line)
        return taken | {"foreign": foreign_share(before, taken.get("cpu_seconds", 0))}

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def ask(peer: str, shape: Shape, number: int, environment: dict[str, str]) -> dict:
    """Start a worker with this Python and return the result of one turn."""
    worker = Worker(Path(sys.executable), peer, shape, {}, environment)
    worker.wait()
    answer = worker.turn(peer, number)
    worker.end()
    return answer


def start_workers(shape: Shape, rows: list[str], limits: dict[str, str]) -> dict[str, Worker]:
    """Start the worker of each row; rows with the same peer and environment share a worker."""
    ways, shared = environments(), {}
    for name in rows:
        row = ROWS[name]
        shared.setdefault((row.peer, json.dumps(ways[row.environment])), []).append(name)
    workers = {}
    for (peer, environment), names in shared.items():
        elsewhere = peer.startswith(("litgpt", "llms"))
        python = peers_python() if elsewhere else Path(sys.executable)
        settings = {name: asdict(ROWS[name].setting) for name in names}
        worker = Worker(python, peer, shape, settings, json.loads(environment) | limits)
        workers |= dict.fromkeys(names, worker)
    return workers


def play(workload: Workload, rows: list[str], rounds: int, limits: dict[str, str]) -> dict:
    """Run the rounds of a workload; return the turns of each row and the machine's ceilings, kept and dropped."""
    ceilings = {"seconds": 0.7} if workload.shape != TINY else {"seconds": 0.01, "size": 64, "buffer_bytes": 2**16}
    workers = start_workers(workload.shape, rows, limits)
    workers["machine"] = Worker(Path(sys.executable), "ceilings", None, ceilings, limits)
    each = {id(worker): worker for worker in workers.values()}.values()
    for worker in each:
        worker.wait()
    first = {name: worker.turn(name, workload.steps) for name, worker in workers.items()}  # compiles, warms up
    kept, dropped, most = [], [], math.ceil(1.5 * rounds)
    while len(kept) < rounds and len(kept) + len(dropped) < most:
        turns = {name: worker.turn(name, workload.steps) for name, worker in workers.items()}
        foreign = max(turn["foreign"] for turn in turns.values())
        (kept if foreign <= FOREIGN else dropped).append(turns)
        shown = "  ".join(f"{turns[name]['seconds'] / workload.steps:.2f}" for name in rows)
        print(f"  {shown}  {'' if foreign <= FOREIGN else f'dropped: {foreign:.0%} other load'}", flush=True)
    for worker in each:
        worker.end()
    return {"first": first, "kept": kept, "dropped": dropped}


# --- Figures -----------------------------------------------------------------------------------------------------


def summarize(workload: Workload, rows: list[str], found: dict) -> dict:
    """Return medians, spreads and ratios of a workload's rounds, and which targets were met."""
    kept, dropped = found["kept"], len(found["dropped"])
    is_claim = len(kept) >= CLAIM_ROUNDS and dropped <= (len(kept) + dropped) / 3
    rounds = kept or found["dropped"]  # shown even if nothing is claimed
    ceilings = {name: statistics.median(r["machine"][name] for r in rounds) for name in ("fp32", "bf16", "memory")}
    tokens, flops = workload.shape.batch * workload.shape.length, count_flops(workload.shape)
    figures: dict[str, dict] = {}
    for name in rows:
        seconds = [r[name]["seconds"] / workload.steps for r in rounds]
        median = statistics.median(seconds)
        figures[name] = {
            "step_seconds": {"median": median, "min": min(seconds), "max": max(seconds)},
            "tokens_per_second": tokens / median,
            "of_ceiling": flops / median / 1e9 / ceilings["bf16"],
            "first_turn_seconds": found["first"][name]["seconds"],
            "parameters": rounds[0][name]["parameters"],
            "setting": asdict(ROWS[name].setting) | {"environment": environments()[ROWS[name].environment]},
        }
        if "reference" in figures:
            figures[name]["over_reference"] = figures["reference"]["step_seconds"]["median"] / median
    return {
        "title": workload.title,
        "shape": asdict(workload.shape),
        "flops": flops,
        "steps_per_turn": workload.steps,
        "rounds": len(kept),
        "dropped": dropped,
        "claim": is_claim,
        "threads": rounds[0]["machine"]["threads"],
        "ceilings": ceilings,
        "rows": figures,
        "targets": judge(workload, figures),
        "foreign": [max(turn["foreign"] for turn in r.values()) for r in [*kept, *found["dropped"]]],
    }


def judge(workload: Workload, figures: dict) -> list[dict]:
    """Return the targets of our best setting and of ours out of the box, each with its measured value."""
    mine = min((figures[name]["step_seconds"]["median"], name) for name in (*OURS, BOX) if name in figures)[1]
    others = [n for n in figures if not n.startswith("ours") and n != "reference" and ROWS[n].counts]
    judged = []
    for row, share in ((mine, 1.0), (BOX, BOX_SHARE)):
        for against, asked in workload.targets.items():
            name = against
            if against == "the best setting of any peer" and others:
                name = min(others, key=lambda n: figures[n]["step_seconds"]["median"])
            if row not in figures or (against != "ceiling" and name not in figures):
                continue
            if against == "ceiling":
                value = figures[row]["of_ceiling"]
            else:
                value = figures[name]["step_seconds"]["median"] / figures[row]["step_seconds"]["median"]
            which = name if name == against else f"{against} ({name})"
            judged.append({"row": row, "over": which, "asked": share * asked, "found": value})
            judged[-1]["reached"] = value >= share * asked
    return judged


def describe_machine() -> dict:
    import torch

    names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9,
        "bf16": bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")),
        "huge_pages": pages.read_text(encoding="utf-8").strip() if pages.exists() else "none",
        "best_allocator": "=".join(next(iter(environments()["best"].items()))),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "foreign_load_allowed": FOREIGN,
        "date": date.today().isoformat(),
    }


def show(name: str, row: dict) -> str:
    """Return a row of the table of settings."""
    step = row["step_seconds"]
    spread = f"{step['median']:.2f} ({step['min']:.2f} - {step['max']:.2f})"
    over = f"{row['over_reference']:.2f}" if "over_reference" in row else ""
    how = [{"no": "fp32"}.get(row["setting"]["precision"], row["setting"]["precision"])]
    how += ["fused"] if row["setting"]["fused"] else []
    how += [f"compile ({row['first_turn_seconds']:.0f} s)"] if row["setting"]["compile"] else []
    how += [f"{key}={value}" for key, value in row["setting"]["environment"].items()]
    cells = (
        name,
        ", ".join(how),
        spread,
        f"{row['tokens_per_second']:,.0f}",
        over,
        f"{100 * row['of_ceiling']:.0f} %",
    )
    return f"| {' | '.join(cells)} |"


def show_target(target: dict) -> str:
    """Return a row of the table of targets."""
    measure = "share of the bf16 ceiling" if target["over"] == "ceiling" else f"times {target['over']}"
    verdict = "met" if target["reached"] else "not met"
    return f"| {target['row']} | {measure} | {target['asked']:.2f} | {target['found']:.2f} | {verdict} |"


def table(summary: dict) -> list[str]:
    """Return the lines that are printed and shown on the page: settings and targets of each workload."""
    machine = summary["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB, {machine['system']}, torch "
        f"{machine['torch']}, {machine['date']}"
    ]
    for found in summary["workloads"].values():
        shape, limits = found["shape"], found["ceilings"]
        claim = "" if found["claim"] else ": NO CLAIM"
        lines += [
            "",
            f"{found['title']}, T={shape['length']}, B={shape['batch']}: {found['rounds']} rounds, {found['dropped']} "
            f"dropped because of other load{claim}",
            f"ceilings ({found['threads']} threads): fp32 {limits['fp32']:.0f} GFLOP/s, bf16 {limits['bf16']:.0f} "
            f"GFLOP/s, memory {limits['memory']:.1f} GB/s",
            "",
            "| | settings | seconds per step: median (lowest - highest) | tokens/s | times reference "
            "| of the bf16 ceiling |",
            "|---|---|---|---|---|---|",
            *(show(name, row) for name, row in found["rows"].items()),
            "",
            "| | measure | target | measured | |",
            "|---|---|---|---|---|",
            *(show_target(target) for target in found["targets"]),
        ]
    if losses := summary.get("losses"):
        difference = f"{losses['largest_difference']:.3%}"
        lines += ["", f"losses of {losses['steps']} steps: ours and plain fp32 differ by at most {difference}"]
    return lines


def draw(summary: dict, file: Path) -> None:
    """Plot the tokens per second of every row, a panel for each workload; the dashed line is 60 % of the ceiling."""
    from matplotlib.figure import Figure

    from scratch_gpt.utils.plots import RATE, TRAIN, VALIDATION

    workloads = summary["workloads"].values()
    figure = Figure(figsize=(8, 3.2 * len(workloads)), layout="constrained", facecolor="white")
    for axes, found in zip(figure.subplots(len(workloads), 1, squeeze=False)[:, 0], workloads, strict=True):
        names = list(found["rows"])
        middle = [found["rows"][name]["step_seconds"] for name in names]
        tokens = found["shape"]["batch"] * found["shape"]["length"]
        values = [tokens / step["median"] for step in middle]
        spread = [[v - tokens / s["max"] for v, s in zip(values, middle, strict=True)]]
        spread += [[tokens / s["min"] - v for v, s in zip(values, middle, strict=True)]]
        colors = [VALIDATION if name.startswith("ours") else TRAIN for name in names]
        bars = axes.barh(names, values, xerr=spread, color=colors, ecolor=RATE)
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4, fontsize=8)
        line = 0.6 * found["ceilings"]["bf16"] * 1e9 * tokens / found["flops"]
        axes.axvline(line, color=RATE, linestyle="--", linewidth=1)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_title(found["title"] + ("" if found["claim"] else " (no claim)"), fontsize=10)
        axes.set_xlabel("tokens per second")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=CLAIM_ROUNDS)
    parser.add_argument("--only", default="", help="Prefixes of the rows to run, separated by commas.")
    parser.add_argument(
        "--workloads",
        default=",".join(WORKLOADS),
        help=f"Workloads to run, separated by commas: {', '.join(WORKLOADS)}.",
    )
    parser.add_argument("--keep", action="store_true", help="Keep the rounds of --out; run only the profile.")
    parser.add_argument("--threads", type=int, help="Number of threads; torch's default is one for each core.")
    parser.add_argument(
        "--quick", action="store_true", help="Tiny shapes and two rounds, to check that everything runs."
    )
    parser.add_argument("--out", type=Path, default=HERE / "training.json")
    options = parser.parse_args()
    if not Path("/proc/stat").exists():
        raise SystemExit("This benchmark reads the machine's load from /proc/stat and runs on Linux only.")
    rows = [name for name in ROWS if name.startswith(tuple(options.only.split(",")))]
    limits = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    summary: dict = {"machine": describe_machine(), "workloads": {}}
    before = json.loads(options.out.read_text()) if options.out.exists() else summary
    same_machine = {**summary["machine"], "date": ""} == {**before["machine"], "date": ""}
    if options.keep and not (same_machine and {*options.workloads.split(",")} <= {*before["workloads"]}):
        raise SystemExit(
            f"--keep: {options.out} lacks some of {options.workloads} from this machine. Run without --keep."
        )
    with tempfile.TemporaryDirectory() as cache:  # each run starts with an empty compile cache
        limits["TORCHINDUCTOR_CACHE_DIR"] = cache
        for name in options.workloads.split(","):
            workload = WORKLOADS[name]._replace(shape=TINY) if options.quick else WORKLOADS[name]
            here = [row for row in rows if row not in workload.without]
            print(f"{workload.title}: {'; '.join(here)}", flush=True)
            if options.keep:
                summary["workloads"][name] = before["workloads"][name]
            else:
                found = play(workload, here, 2 if options.quick else options.rounds, limits)
                summary["workloads"][name] = summarize(workload, here, found)
            products = ask("products", workload.shape, PROFILED, limits | environments()["recipe"])
            summary["workloads"][name]["products"] = products["steps"]
    found = (before["workloads"] if same_machine else {}) | summary["workloads"]
    summary["workloads"] = {name: found[name] for name in WORKLOADS if name in found}
    shape, steps = (TINY, 3) if options.quick else LOSSES
    summary["losses"] = ask("losses", Shape(**{**asdict(shape), "vocabulary": 256}), steps, limits)
    summary["table"] = table(summary)
    print("\n".join(summary["table"]))
    options.out.write_text(json.dumps(summary, indent=2) + "\n")
    draw(summary, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
