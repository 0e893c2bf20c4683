"""Measure the load of this machine from /proc/stat, and the share that other processes cause."""

import os
from pathlib import Path


FOREIGN = 0.05  # largest share that other processes may use, of the processor time of all cores during a turn


def processor_seconds() -> tuple[float, float]:
    """Return (busy, all) processor seconds of the machine since it started; stolen time is busy, waiting is not."""
    fields = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK"), sum(fields) / os.sysconf("SC_CLK_TCK")


def foreign_share(before: tuple[float, float], own: float) -> float:
    """Return the share of the machine that other processes used since `before`, given our `own` processor seconds."""
    busy, total = (now - then for now, then in zip(processor_seconds(), before, strict=True))
    return max(0.0, busy - own) / max(1e-9, total)
