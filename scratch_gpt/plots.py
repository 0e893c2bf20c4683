"""A run's record -> pictures. Matplotlib is imported inside the functions, and draws without a screen."""

import math
from pathlib import Path
from typing import Any


TRAIN, VALIDATION, RATE = "#7aa6d6", "#d1495b", "#8a8a8a"


def plot_loss(metrics: list[dict[str, Any]], file: Path, title: str = "") -> Path:
    """Training and validation loss (left axis) and perplexity (right) over tokens (below) and epochs (above).

    The learning rate stands in a strip of its own. `metrics` are the lines of metrics.jsonl.
    """
    from matplotlib.figure import Figure

    train = [line for line in metrics if line.get("loss") is not None]  # null where it was not finite
    held_out = [line for line in metrics if line.get("eval_loss") is not None]
    figure = Figure(figsize=(8, 5.5), layout="constrained", facecolor="white")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])

    loss.plot([m["tokens"] for m in train], [m["loss"] for m in train], color=TRAIN, linewidth=1, label="training")
    loss.plot(
        [m["tokens"] for m in held_out],
        [m["eval_loss"] for m in held_out],
        *("o-",),
        color=VALIDATION,
        markersize=3,
        label="validation",
    )
    if held_out:
        best = min(held_out, key=lambda m: m["eval_loss"])
        loss.annotate(
            f"{best['eval_loss']:.3f}",
            (best["tokens"], best["eval_loss"]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=VALIDATION,
        )
    loss.set_ylabel("loss (nats per token)")
    loss.set_title(title, parse_math=False)
    loss.grid(alpha=0.3)
    loss.legend(frameon=False)
    perplexity = loss.secondary_yaxis("right", functions=(_exp, _log))
    perplexity.set_ylabel("perplexity")
    low, high = loss.get_ylim()
    ticks = [n * 10**k for k in range(7) for n in (1, 2, 5) if low <= math.log(n * 10**k) <= high]
    perplexity.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    perplexity.minorticks_off()
    last = train[-1] if train else {}
    if last.get("epoch"):  # tokens and epochs grow together
        tokens_per_epoch = last["tokens"] / last["epoch"]
        epochs = loss.secondary_xaxis(
            "top", functions=(lambda t: t / tokens_per_epoch, lambda e: e * tokens_per_epoch)
        )
        epochs.set_xlabel("epochs")

    rate.plot([m["tokens"] for m in train], [m["learning_rate"] for m in train], color=RATE)
    rate.set_ylabel("learning rate")
    rate.set_xlabel("tokens")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    return file


def _exp(values):
    import numpy as np

    return np.exp(np.clip(values, -700, 700))


def _log(values):
    import numpy as np

    return np.log(np.maximum(values, 1e-300))


__all__ = ["plot_loss"]
