"""What was aimed at beyond a training step (training.json has its own), and what the files of the benches say.

    python tests/benchmarks/targets.py

prints the table that README.md shows.
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


class Target(NamedTuple):
    what: str
    asked: float
    found: float
    at_most: bool = True
    unit: str = ""

    def __str__(self) -> str:
        reached = self.found <= self.asked if self.at_most else self.found >= self.asked
        asked = f"at {'most' if self.at_most else 'least'} {self.asked:g}{self.unit}"
        return f"| {self.what} | {asked} | {self.found:.2f}{self.unit} | {'reached' if reached else 'missed'} |"


def targets() -> Iterator[Target]:
    """Every target, from the files that lie beside this one."""
    for precision in ("fp32", "bf16"):
        found = figures("loss")["figures"][f"head, 4x1024, {precision}"]
        share = found["ours"]["peak_bytes"] / found["plain"]["peak_bytes"]
        yield Target(f"the loss at 124M in {precision}, its peak over the plain form's", 0.25, share)
    yield Target("the loop's own share of a step", 1, 100 * figures("loop")["share"], unit=" %")
    quality = figures("quality")
    yield Target("time to the reference's loss", 50, 100 * quality["time_over_reference"], unit=" %")
    lead = quality["ours"]["loss"] - quality["reference"]["loss"]
    yield Target("the loss there, less the reference's", 0, lead, unit=" nats")

    for name in DECODING:
        decoding = figures(name)
        for how, ratios in decoding["ratios"]["1x32+128"].items():
            for pair, asked in SPEEDS.items():
                kinds = pair.split(" / ")
                if how != "as both come":
                    kinds = [fastest(decoding["tokens_per_second"]["1x32+128"], kind) for kind in kinds]
                what = f"decoding on {decoded_on(decoding)}, {' over '.join(kinds)}, {how}"
                yield Target(what, asked, ratios[pair], at_most=False)
        speeds = decoding["tokens_per_second"]["1x32+128"]
        for kind in ("fp32", "bf16"):
            if (mine := f"ours {kind} assisted") in speeds:
                what = f"decoding on {decoded_on(decoding)}, {mine} over transformers {kind}, no allocator of its own"
                yield Target(what, 1.5, speeds[mine] / speeds[f"transformers {kind}"], at_most=False)
        yield Target(f"124M made int8 on {decoded_on(decoding)}", 2, made_int8(decoding), unit=" s")
        if perplexity := decoding["perplexity"]:
            rise = 100 * perplexity["rise"]
            yield Target(f"perplexity's rise by int8 on {decoded_on(decoding)}", 1, rise, unit=" %")

    for plan in map(figures, PLANS):
        for name in ("seconds", "bytes"):
            worst = max(abs(100 * (found[name]["ratio"] - 1)) for found in plan["figures"].values())
            what = f"a plan's error in {name} on {planned_on(plan)}, the largest of three sizes"
            yield Target(what, 15, worst, unit=" %")
    loading = figures("loading")
    for name, what in (("load_seconds", "time"), ("load_mib", "peak")):
        yield Target(f"loading 124M, {what} over stock transformers'", 1.1, loading["figures"][name]["ratio"])
    for name, asked in (("import scratch_gpt", 0.1), ("pretrain.py --help", 2)):
        yield Target(f"`{name}`", asked, loading["starts"][name]["median"], unit=" s")


def fastest(speeds: dict[str, float], kind: str) -> str:
    """The way of a kind of decoding that gave the most tokens a second."""
    return max((peer for peer in speeds if peer.startswith(kind)), key=speeds.get)


def decoded_on(decoding: dict) -> str:
    """The processor of a file of bench_decoding.py, and how fast it was then: the products of a step in int8."""
    return f"{decoding['cpu']} ({decoding['int8_step']['products_milliseconds']:.1f} ms)"


def made_int8(decoding: dict) -> float:
    """Seconds in which 124M were made int8: the median of several processes, or of the one that there was."""
    return median(decoding.get("int8_seconds") or [decoding["runs"]["ours int8"]["prepare_seconds"]])


def planned_on(plan: dict) -> str:
    """The processor of a file of bench_plan.py."""
    return plan["figures"]["gpt2"]["turns"][0]["plan"]["device"].partition(" (AVX")[0]


def figures(name: str) -> dict:
    """The file of a bench."""
    return json.loads((FOLDER / f"{name}.json").read_text())


if __name__ == "__main__":
    print("| | aim | found | |\n|---|---|---|---|", *targets(), sep="\n")
