"""How busy this machine is, read off /proc/stat, and how much of that may be others'."""

import os
from pathlib import Path


FOREIGN = 0.05  # of the processor time of all cores during a turn


def processor_seconds() -> tuple[float, float]:
    """(busy, all) processor seconds of the whole machine since it started; stolen time is busy, waiting is not."""
    fields = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK"), sum(fields) / os.sysconf("SC_CLK_TCK")


def foreign_share(before: tuple[float, float], own: float) -> float:
    """The share of the machine that others had since `before`, where we used `own` processor seconds."""
    busy, total = (now - then for now, then in zip(processor_seconds(), before, strict=True))
    return max(0.0, busy - own) / max(1e-9, total)
