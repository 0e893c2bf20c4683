"""Measure training a tokenizer: memory as the text grows, compression against GPT-2's tokenizer, and round trips.

    python tests/benchmarks/bench_tokenizers.py [--out FILE.json]

Memory is the peak of anonymous memory (RssAnon) of a fresh process that trains a byte-level BPE on 50 and on 500 MB of
generated text. Its words follow Zipf's law with an unlimited vocabulary, so new words keep appearing.
GPT-2's tokenizer, Shakespeare and the 27 languages are read from the data folder (SCRATCH_GPT_DATA); without it these
figures are null. The pages quote the ratio and the bytes per token.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np


REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SCRATCH_GPT_DATA", REPO.parent / "shared" / "data"))
MEGABYTES = (50, 500)
SIZES = (4096, 8192)
EXPONENT = 1.2
WORDS = 400  # words of a document
SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]


# --- Memory ------------------------------------------------------------------------------------------------------


def spell(rank: int) -> str:
    """Spell a number as a unique word."""
    word = ""
    while rank:
        rank, syllable = divmod(rank - 1, len(SYLLABLES))
        word += SYLLABLES[syllable]
    return word


def ranks() -> Iterator[list[int]]:
    """Yield the words of each document, as numbers."""
    draws = np.random.default_rng(0)
    while True:
        yield from draws.zipf(EXPONENT, (1000, WORDS)).tolist()


def documents(megabytes: float) -> Iterator[str]:
    """Yield generated documents, `megabytes` million bytes in total."""
    common = lru_cache(100_000)(spell)
    left = megabytes * 1e6
    for numbers in ranks():
        text = " ".join(map(common, numbers))
        yield text
        left -= len(text)
        if left <= 0:
            return


def train(megabytes: float, encoder: str, vocab_size: int) -> None:
    """Train a tokenizer; run by the measured process."""
    from scratch_gpt.tokenization.training import sample_texts, train_tokenizer

    print("loaded", flush=True)
    books = [file.read_text(encoding="utf-8") for file in sorted((DATA / "books").glob("*.txt"))]
    sample = sample_texts(documents(megabytes) if megabytes else books)
    del books
    print("read", flush=True)
    read = time.perf_counter()
    tokenizer = train_tokenizer(sample, vocab_size, encoder=encoder)
    seconds = time.perf_counter() - read
    figures = {"bytes_seen": sample.bytes_seen, "bytes_used": sample.bytes_used, "training_seconds": seconds}
    print(json.dumps({**figures, "vocab_size": len(tokenizer)}), flush=True)


def measure(megabytes: float, encoder: str = "auto", vocab_size: int = 8192) -> dict:
    """Return the peak anonymous memory of a process that trains, and its memory before and after it read the text.

    Without megabytes the text is that of the books.
    """
    command = [sys.executable, __file__, "--train", str(megabytes), encoder, str(vocab_size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPO)})
    assert process.stdout.readline() == "loaded\n"
    before = anonymous_bytes(process.pid)
    assert process.stdout.readline() == "read\n"
    peak = with_text = anonymous_bytes(process.pid)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.01)
    figures = json.loads(process.stdout.read())
    return {"megabytes": megabytes, "peak_anonymous_bytes": peak, "before": before, "with_text": with_text, **figures}


def trainers(rounds: int = 3) -> dict | None:
    """Return the time and the additional memory of both trainers on the books, in turns: medians by vocabulary."""
    if not DATA.is_dir() or find_spec("gigatoken") is None:
        return None
    figures = {}
    for size in (8192, 32768):
        runs = {name: [] for name in ("tokenizers", "gigatoken")}
        for _ in range(rounds):
            for name, found in runs.items():
                found.append(measure(0, name, size))
        medians = {
            name: {
                "seconds": median(run["training_seconds"] for run in found),
                "bytes": median(run["peak_anonymous_bytes"] - run["with_text"] for run in found),
            }
            for name, found in runs.items()
        }
        one, other = medians["gigatoken"], medians["tokenizers"]
        figures[str(size)] = {**medians, "ratios": {name: one[name] / other[name] for name in one}}
    return figures


def anonymous_bytes(process: int) -> int:
    """Return RssAnon of a process and those that it has started, or 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        started = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    return own + sum(anonymous_bytes(int(child)) for child in started)


def count_distinct(megabytes: tuple[float, ...]) -> list[int]:
    """Count the distinct words in the first N million bytes, for increasing N."""
    length = lru_cache(100_000)(lambda rank: len(spell(rank)) + 1)
    seen, size, counts = set(), 0, []
    for numbers in ranks():
        seen.update(numbers)
        size += sum(map(length, numbers)) - 1
        if size >= megabytes[len(counts)] * 1e6:
            counts.append(len(seen))
            if len(counts) == len(megabytes):
                return counts


# --- Compression and round trips ---------------------------------------------------------------------------------


def compression() -> dict:
    """Return bytes per token on the held-out tenth and rare tokens of the training part, by corpus and tokenizer."""
    from scratch_gpt.data.sources.documents import open_documents, split_documents
    from scratch_gpt.tokenization.tokenizer import load_tokenizer, tokenizer_report
    from scratch_gpt.tokenization.training import train_tokenizer

    corpora = {"python-docs": "python-docs", "tinyshakespeare": str(DATA / "tinyshakespeare.txt")}
    gpt2 = {"gpt2": load_tokenizer(DATA / "gpt2-tokenizer")} if DATA.is_dir() else {}
    figures = {}
    for name, source in corpora.items():
        if not DATA.is_dir() and name != "python-docs":
            figures[name] = None
            continue
        splits = split_documents(open_documents(source).rows)
        ours = {f"ours, {size}": train_tokenizer(splits["train"]["text"], size) for size in SIZES}
        reports = {
            made: tokenizer_report(tokenizer, splits["validation"]["text"], gpt2, splits["train"]["text"])
            for made, tokenizer in ours.items()
        }
        first = next(iter(reports.values()))
        figures[name] = {
            "bytes": first["bytes"],
            "bytes_per_token": first["peers"] | {made: report["bytes_per_token"] for made, report in reports.items()},
            "unused": {made: report["unused"]["count"] for made, report in reports.items()},
            "under_trained": {made: report["under_trained"]["count"] for made, report in reports.items()},
        }
    return figures


def round_trips() -> dict | None:
    """Count the lines of the declaration of human rights that do not decode to themselves, in each of 27 languages."""
    from scratch_gpt.data.sources.documents import open_documents
    from scratch_gpt.tokenization.tokenizer import tokenizer_report
    from scratch_gpt.tokenization.training import train_tokenizer

    if not DATA.is_dir():
        return None
    tokenizer = train_tokenizer(open_documents().rows["text"])
    files = {file.stem.removeprefix("udhr_"): file for file in sorted((DATA / "multilingual").glob("*.txt"))}
    lines = {name: file.read_text(encoding="utf-8").splitlines(keepends=True) for name, file in files.items()}
    failures = {name: tokenizer_report(tokenizer, part)["round_trip_failures"] for name, part in lines.items()}
    return {"languages": len(files), "lines": sum(map(len, lines.values())), "failures": sum(failures.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "tokenizers.json")
    parser.add_argument("--only", choices=["trainers"], help="run only this part and keep the rest of --out")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        megabytes, encoder, vocab_size = options.train
        train(float(megabytes), encoder, int(vocab_size))
        return
    if options.only:
        figures = json.loads(options.out.read_text()) | {"trainers": trainers()}
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
        return
    figures = {"compression": compression(), "round_trips": round_trips(), "trainers": trainers()}
    memory = [measure(size) for size in MEGABYTES]
    for row, distinct in zip(memory, count_distinct(MEGABYTES), strict=True):
        row["distinct_words"] = distinct
    peaks = [row["peak_anonymous_bytes"] for row in memory]
    figures["memory"] = {"runs": memory, "ratio": peaks[-1] / peaks[0]}
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
