"""Write the comparison of pre-tokenizers as Markdown: compression of languages and code, loss and speed."""

from typing import Any

from markup import lines, table
from targets import figures


NAMES = {
    "bn": "Bengali",
    "cs": "Czech",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "it": "Italian",
    "ja": "Japanese",
    "kn": "Kannada",
    "ko": "Korean",
    "my": "Burmese",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "ta": "Tamil",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}


def languages() -> str:
    """Show characters and bytes per token of each language, for its own tokenizer and for one of all languages."""
    found = figures("languages")["compression"]
    columns = [("own", size, name) for size in ("500", "2000") for name in ("gpt2", "qwen35")]
    columns += [("own", "2000", name) for name in ("gpt2 + marks", "deepseek-v3")]
    columns += [("together", "8000", name) for name in ("gpt2", "qwen35")]
    heads = [f"{name}, {int(size):,}{' together' if kind == 'together' else ''}" for kind, size, name in columns]
    rows = [
        f"| {NAMES[code]} | {' | '.join(cell(found[kind][code][size][name]) for kind, size, name in columns)} |"
        for code in sorted(found["own"], key=lambda code: NAMES[code])
    ]
    return table(f"| | {' | '.join(heads)} |", rows)


def cell(value: dict[str, Any]) -> str:
    """Return characters and bytes per token."""
    return f"{value['characters_per_token']:.2f} / {value['bytes_per_token']:.2f}"


def pre_tokenizers() -> str:
    """Show the compression of English and code, the loss of a tiny model, and the time of encoding."""
    found = figures("languages")
    names = ("gpt2", "qwen35", "gpt2 + marks", "deepseek-v3")
    rows = []
    for name in ("English", "Python code"):
        for size, row in found["compression"][name].items():
            cells = [f"{row[kind]['characters_per_token']:.2f}" for kind in names]
            rows.append(f"| {name}, {int(size):,} tokens | {' | '.join(cells)} |")
    head = f"| characters per token | {' | '.join(names)} |"
    losses = [
        f"| {name} | {' | '.join(seeds(row[kind]) for kind in ('gpt2', 'qwen35'))} | {change(row):+.1f} % |"
        for name, row in found["loss"].items()
    ]
    times = ", ".join(f"{speed['ratio']:.2f} for {name}" for name, speed in found["speed"].items())
    summary = f"""Time of encoding with `qwen35`, times that of `gpt2`: {times}."""
    second = table("| bits per byte: mean (seeds) | gpt2 | qwen35 | difference |", losses)
    return f"{table(head, rows)}\n\n{second}\n\n{lines(summary)}"


def seeds(value: dict[str, Any]) -> str:
    """Return the mean and the value of each seed."""
    return f"{value['mean']:.3f} ({', '.join(f'{seed:.3f}' for seed in value['seeds'])})"


def change(row: dict[str, Any]) -> float:
    """Return the difference of bits per byte, in per cent."""
    return 100 * (row["qwen35"]["mean"] / row["gpt2"]["mean"] - 1)
