"""Plot a run's measurements. Matplotlib is imported inside the functions and needs no screen."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


TRAIN, VALIDATION, RATE = "#7aa6d6", "#d1495b", "#8a8a8a"


def plot_loss(metrics: list[dict[str, Any]], file: Path, title: str = "") -> Path:
    """Plot training and validation loss (left axis) and perplexity (right) over tokens (below) and epochs (above).

    The learning rate has a separate panel. `metrics` are the lines of metrics.jsonl.
    """
    from matplotlib.figure import Figure

    train = [line for line in metrics if line.get("loss") is not None]  # null if it was not finite
    held_out = [line for line in metrics if line.get("eval_loss") is not None]
    figure = Figure(figsize=(8, 5.5), layout="constrained", facecolor="white")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])

    loss.plot([m["tokens"] for m in train], [m["loss"] for m in train], color=TRAIN, linewidth=1, label="training")
    loss.plot(
        [m["tokens"] for m in held_out],
        [m["eval_loss"] for m in held_out],
        "o-",
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
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
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


def plot_classification(metrics: list[dict[str, Any]], file: Path, title: str = "") -> Path:
    """Plot training and validation losses (above) and accuracies (below) over epochs.

    `metrics` are the lines of metrics.jsonl; the dashed line is the accuracy on the test split before the first step.
    """
    from matplotlib.figure import Figure

    steps = [line for line in metrics if line.get("loss") is not None]
    held_out = [line for line in metrics if line.get("eval_loss") is not None]
    per_step = steps[-1]["epoch"] / steps[-1]["step"] if steps else 0.0
    epochs = [line["step"] * per_step for line in held_out]
    figure = Figure(figsize=(8, 5.5), layout="constrained", facecolor="white")
    loss, accuracy = figure.subplots(2, 1, sharex=True)

    loss.plot([m["epoch"] for m in steps], [m["loss"] for m in steps], color=TRAIN, linewidth=1, label="training")
    loss.plot(epochs, [m["eval_loss"] for m in held_out], "o-", color=VALIDATION, markersize=3, label="validation")
    loss.set_ylabel("loss (nats)")
    loss.set_title(title, parse_math=False)
    for name, color, label in (("train_", TRAIN, "training"), ("eval_", VALIDATION, "validation")):
        points = [(x, m[f"{name}accuracy"]) for x, m in zip(epochs, held_out, strict=True) if f"{name}accuracy" in m]
        if points:
            accuracy.plot(*zip(*points, strict=True), "o-", color=color, markersize=3, label=label)
    if held_out and "test_accuracy" in held_out[0]:
        accuracy.axhline(held_out[0]["test_accuracy"], color=RATE, linestyle="--", linewidth=1, label="test, before")
    accuracy.set_ylabel("accuracy")
    accuracy.set_ylim(0, 1.02)
    accuracy.set_xlabel("epochs")
    for panel in (loss, accuracy):
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.savefig(file, dpi=120)
    return file


def plot_confusion(confusion: list[list[int]], labels: Sequence[str], file: Path, title: str = "") -> Path:
    """Plot a confusion matrix (C, C): rows are true classes, columns predicted ones; shaded by the row's share."""
    from matplotlib.figure import Figure

    size = min(10.0, 2.5 + 0.7 * len(labels))
    figure = Figure(figsize=(size + 1, size), layout="constrained", facecolor="white")
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= 20:
        for i, row in enumerate(confusion):
            for j, count in enumerate(row):
                color = "white" if shares[i][j] > 0.5 else "black"
                axes.text(j, i, f"{count:,}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 4 else 0, parse_math=False)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, parse_math=False)
    figure.savefig(file, dpi=120)
    return file


def plot_parameters(counts: Mapping[str, int], file: Path, title: str = "") -> Path:
    """Plot the number of parameters of each part of a model, in the order of `counts`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.4 * len(counts)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    total = sum(counts.values())
    bars = axes.barh(list(counts), list(counts.values()), color=TRAIN)
    axes.bar_label(bars, [f"{count:,} ({count / total:.1%})" for count in counts.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("parameters")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    axes.set_title(title, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(file, dpi=120)
    return file


def plot_attention(
    maps: Mapping[int, Sequence[Any]], tokens: Sequence[str], file: Path, title: str = "", most: int = 6
) -> Path:
    """Plot the attention of one sentence, {layer: (H, T, T)}: a row for each layer, with its first `most` heads.

    In a map each row is a query token and each column a key token. Shades show the square root of the attention, so
    that small values are visible.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    heads = min(most, len(next(iter(maps.values()))))
    size = max(1.7, 0.14 * len(tokens))  # inches of a map
    figure = Figure(figsize=(2 + size * heads, 1.3 + size * len(maps)), layout="constrained", facecolor="white")
    grid = figure.subplots(len(maps), heads, squeeze=False)
    for row, (layer, of_layer) in enumerate(maps.items()):
        for head, axes in enumerate(grid[row]):
            shades = axes.imshow(of_layer[head], cmap="Blues", norm=PowerNorm(0.5, 0, 1))
            axes.set_title(f"layer {layer}, head {head + 1}", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            if row == len(maps) - 1:
                axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7, parse_math=False)
            if head == 0:
                axes.set_yticks(range(len(tokens)), tokens, fontsize=7, parse_math=False)
            axes.tick_params(length=0)
    figure.colorbar(shades, ax=grid, label="attention", ticks=[0, 0.05, 0.25, 0.5, 1], shrink=0.6, aspect=30)
    figure.suptitle(title, parse_math=False)
    figure.supxlabel("attended token (key)", fontsize=9)
    figure.supylabel("attending token (query)", fontsize=9)
    figure.savefig(file, dpi=120)
    return file


def plot_token_lengths(lengths: Sequence[int], file: Path, title: str = "", longest: int = 20) -> Path:
    """Plot the number of tokens of a vocabulary by length in bytes; the last bar counts all from `longest` on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    counts = [0] * (longest + 1)
    for length in lengths:
        counts[min(length, longest)] += 1
    last = max(n for n, count in enumerate(counts) if count)
    numbers = range(1, last + 1)
    bars = axes.bar(numbers, counts[1 : last + 1], color=TRAIN)
    axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts[1 : last + 1]], fontsize=7)
    mean = sum(lengths) / len(lengths)
    axes.axvline(mean, color=VALIDATION, linestyle="--", linewidth=1, label=f"mean {mean:.1f}")
    axes.set_xticks(numbers, [f"{n}+" if n == longest else str(n) for n in numbers])
    axes.set_xlabel("bytes per token")
    axes.set_ylabel("tokens of the vocabulary")
    axes.set_title(title, parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    return file


def _exp(values: Any) -> Any:
    import numpy as np

    return np.exp(np.clip(values, -700, 700))


def _log(values: Any) -> Any:
    import numpy as np

    return np.log(np.maximum(values, 1e-300))


__all__ = [
    "plot_attention",
    "plot_classification",
    "plot_confusion",
    "plot_loss",
    "plot_parameters",
    "plot_token_lengths",
]
