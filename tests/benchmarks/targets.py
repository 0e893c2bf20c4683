"""Compare the results of the benchmarks with their targets; training.json has the targets of a training step.

    python tests/benchmarks/targets.py

prints the table of tests/benchmarks/README.md.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple


FOLDER = Path(__file__).parent
PLANS = ("plan", "plan-epyc")
DECODING = ("decoding", "decoding-epyc")

SPEEDS = {
    "ours fp32 / transformers fp32": 1.5,
    "ours bf16 / transformers bf16": 1.5,
    "ours int8 / transformers fp32": 4,
    "ours int8 / ctranslate2 int8": 1.3,
}
# Names in the files and their descriptions.
SETTINGS = {"as both come": "default settings", "each at its best": "best settings"}
HEAD = "| measure | target | measured | |"


class Target(NamedTuple):
    """A measured value and its limit."""

    measure: str
    limit: float
    measured: float
    at_most: bool = True
    unit: str = ""

    def __str__(self) -> str:
        is_met = self.measured <= self.limit if self.at_most else self.measured >= self.limit
        limit = f"at {'most' if self.at_most else 'least'} {self.limit:g}{self.unit}"
        return f"| {self.measure} | {limit} | {self.measured:.2f}{self.unit} | {'met' if is_met else 'not met'} |"


def targets() -> Iterator[Target]:
    """Yield every target, with the values of the files in this folder."""
    for precision in ("fp32", "bf16"):
        head = figures("loss")["figures"][f"head, 4x1024, {precision}"]
        share = head["ours"]["peak_bytes"] / head["plain"]["peak_bytes"]
        yield Target(f"loss at 124M in {precision}: peak memory, times the plain form's", 0.25, share)
    yield Target("training loop: its share of a step", 1, 100 * figures("loop")["share"], unit=" %")
    quality = figures("quality")
    time = 100 * quality["time_over_reference"]
    yield Target("time to the reference's loss, share of the reference's time", 50, time, unit=" %")
    difference = quality["ours"]["loss"] - quality["reference"]["loss"]
    yield Target("loss at the end, minus the reference's", 0, difference, unit=" nats")

    for name in DECODING:
        decoding = figures(name)
        machine = decoded_on(decoding)
        for way, ratios in decoding["ratios"]["1x32+128"].items():
            for pair, limit in SPEEDS.items():
                kinds = pair.split(" / ")
                if way != "as both come":
                    kinds = [fastest(decoding["tokens_per_second"]["1x32+128"], kind) for kind in kinds]
                measure = f"decoding on {machine}: {' over '.join(kinds)}, {SETTINGS[way]}"
                yield Target(measure, limit, ratios[pair], at_most=False)
        speeds = decoding["tokens_per_second"]["1x32+128"]
        for kind in ("fp32", "bf16"):
            if (assisted := f"ours {kind} assisted") in speeds:
                measure = f"decoding on {machine}: {assisted} over transformers {kind}, default allocator"
                yield Target(measure, 1.5, speeds[assisted] / speeds[f"transformers {kind}"], at_most=False)
        yield Target(f"converting 124M to int8 on {machine}", 2, made_int8(decoding), unit=" s")
        if perplexity := decoding["perplexity"]:
            rise = 100 * perplexity["rise"]
            yield Target(f"rise of the perplexity in int8 on {machine}", 1, rise, unit=" %")

    for plan in map(figures, PLANS):
        for name, quantity in (("seconds", "time"), ("bytes", "memory")):
            worst = max(abs(100 * (size[name]["ratio"] - 1)) for size in plan["figures"].values())
            measure = f"error of a plan's {quantity} on {planned_on(plan)}, the largest of three sizes"
            yield Target(measure, 15, worst, unit=" %")
    loading = figures("loading")
    for name, quantity in (("load_seconds", "time"), ("load_mib", "peak memory")):
        ratio = loading["figures"][name]["ratio"]
        yield Target(f"loading 124M: {quantity}, times that of stock transformers", 1.1, ratio)
    for name, limit in (("import scratch_gpt", 0.1), ("pretrain.py --help", 2)):
        yield Target(f"`{name}`", limit, loading["starts"][name]["median"], unit=" s")


def fastest(speeds: dict[str, float], kind: str) -> str:
    """Return the settings of a kind of decoding with the highest number of tokens per second."""
    return max((peer for peer in speeds if peer.startswith(kind)), key=lambda peer: speeds[peer])


def decoded_on(decoding: dict) -> str:
    """Return the processor of a file of bench_decoding.py, and the time of the matrix products of an int8 step."""
    return f"{decoding['cpu']} ({decoding['int8_step']['products_milliseconds']:.1f} ms)"


def made_int8(decoding: dict) -> float:
    """Return the seconds that converting 124M to int8 took: the median of several processes, or of the only one."""
    return median(decoding.get("int8_seconds") or [decoding["runs"]["ours int8"]["prepare_seconds"]])


def planned_on(plan: dict) -> str:
    """Return the processor of a file of bench_plan.py."""
    return plan["figures"]["gpt2"]["turns"][0]["plan"]["device"].partition(" (AVX")[0]


def figures(name: str) -> dict:
    """Return the content of a bench's file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


if __name__ == "__main__":
    print(HEAD, "|---|---|---|---|", *targets(), sep="\n")
