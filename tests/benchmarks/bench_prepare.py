"""Measure preparing data: throughput against run_clm, memory as the corpus grows, the first batch, packed and padded.

    python tests/benchmarks/bench_prepare.py [--out FILE.json] [--rounds 5]
    python tests/benchmarks/bench_prepare.py --only large     # 5 GB: not part of `make bench`

Throughput is MB of text per second from an open dataset to rows on disk, each run in a new process, in turns: ours
(training/prepare.py with GPT-2's tokenizer) with each encoder, and the steps of transformers' run_clm.py (`map` with
the tokenizer, then `map` with group_texts), with the same text, tokenizer and row length. The ids that differ between
the encoders are counted. The text is the books of the data folder (SCRATCH_GPT_DATA); without it the embedded
documentation, with a tokenizer trained on it.
Memory is the peak of anonymous memory of a process that prepares generated text with a growing vocabulary.
Packed and padded (batches of similar length) are two trainings on the same ragged corpus, 16 rows per step, measured
in target tokens per second, the median over steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from bench_tokenizers import DATA, REPO, anonymous_bytes, documents


sys.path.insert(0, str(REPO / "tests" / "helpers"))
MEGABYTES, LARGE = (50, 500), 5000
LENGTH = 1024
TINY = ["--preset", "tiny", "--max-length", "256", "--vocab-size", "2048", "--batch-size", "16", "--seed", "0"]


# --- The measured processes ----------------------------------------------------------------------------------------


def ours(corpus: str, tokenizer: str, folder: str, *more: str) -> dict:
    from scratch_gpt_training import prepare
    from scratch_gpt_training.support import command_line
    from scratch_gpt_training.support.preparation import stages as preparing

    words = ["--dataset", corpus, "--tokenizer", tokenizer, "--max-length", str(LENGTH), "--output-dir", folder]
    run = command_line.parse(prepare.PrepareRun, [*words, "--validation-fraction", "0", *more])
    corpora = preparing.open_corpora(run)
    start = time.perf_counter()
    filters, encoder = preparing.make_filters(run), preparing.load_named_tokenizer(run)
    plan = preparing.hash_plan(run, [found.record for found in corpora])
    work, _ = preparing.open_output_folder(run, plan, [found.record for found in corpora])
    manifest = preparing.prepare(run, corpora, filters, encoder, plan, work)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": manifest["bytes"], "tokens": manifest["tokens"], "rows": manifest["rows"]}


def run_clm(corpus: str, tokenizer: str, folder: str) -> dict:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_caching()
    rows = datasets.load_dataset("json", data_files=corpus, split="train")
    size = sum(len(text.encode()) for text in rows["text"])
    start = time.perf_counter()
    encode = AutoTokenizer.from_pretrained(tokenizer)
    tokens = rows.map(lambda batch: encode(batch["text"]), batched=True, remove_columns=rows.column_names)

    def group_texts(batch: dict) -> dict:
        joined = {name: list(chain.from_iterable(values)) for name, values in batch.items()}
        end = len(joined["input_ids"]) // LENGTH * LENGTH
        cut = {name: [ids[n : n + LENGTH] for n in range(0, end, LENGTH)] for name, ids in joined.items()}
        return {**cut, "labels": list(cut["input_ids"])}

    grouped = tokens.map(group_texts, batched=True)
    return {"seconds": time.perf_counter() - start, "bytes": size, "rows": len(grouped)}


def first_batch(folder: str) -> dict:
    from scratch_gpt.data.manifest import read_manifest, verify_files
    from scratch_gpt.data.prepared.storage import PreparedRows
    from scratch_gpt.data.rows.collate import collate_rows

    start = time.perf_counter()
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    known = manifest["tokenizer"]["vocab_size"], manifest["max_length"]
    rows = PreparedRows(Path(folder) / "train", 0, *known)
    batch = collate_rows([rows[k] for k in range(len(rows) - 8, len(rows))])
    return {"seconds": time.perf_counter() - start, "shape": list(batch["input_ids"].shape), "rows": len(rows)}


# --- The benchmark -------------------------------------------------------------------------------------------------


def call(name: str, *words: str) -> tuple[dict, int]:
    """Call a function of this file in a new process; return its result and its peak anonymous memory."""
    command = [sys.executable, __file__, "--call", name, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.02)
    return json.loads(process.stdout.read().splitlines()[-1]), peak


def write_corpus(home: Path) -> tuple[Path, str, str]:
    """Return (file, tokenizer, description): books in documents of 3,000 characters, or the embedded documentation."""
    from scratch_gpt.data.sources.documents import open_documents
    from scratch_gpt.tokenization.training import train_tokenizer

    path = home / "corpus.jsonl"
    if DATA.is_dir():
        books = [file.read_text(encoding="utf-8") for file in sorted((DATA / "books").glob("*.txt"))]
        texts = [book[n : n + 3000] for book in books for n in range(0, len(book), 3000)]
        tokenizer, what = DATA / "gpt2-tokenizer", "24 books, GPT-2's tokenizer"
    else:
        texts, tokenizer, what = (
            open_documents().rows["text"],
            home / "tokenizer",
            "python-docs, a tokenizer trained on it",
        )
        train_tokenizer(texts, 8192).save_pretrained(tokenizer)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path, str(tokenizer), what


def write_generated(home: Path, megabytes: int) -> Path:
    path = home / f"generated-{megabytes}.jsonl"
    with path.open("w") as lines:
        for text in documents(megabytes):
            lines.write(json.dumps({"text": text}) + "\n")
    return path


def throughput(home: Path, rounds: int, megabytes: int | None = None) -> dict:
    """Compare the ways on the books, or on generated text."""
    corpus, tokenizer, what = write_corpus(home)
    if megabytes is not None:
        corpus, what = write_generated(home, megabytes), f"{megabytes} MB of generated text, {what.split(', ')[1]}"
    calls = {"run_clm": ("run_clm",)}
    calls |= {encoder: ("ours", "--encoder", encoder) for encoder in ("tokenizers", "gigatoken") if has(encoder)}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(rounds):
        for name, (function, *words) in calls.items():
            figures, _ = call(function, str(corpus), tokenizer, str(home / f"{corpus.stem}-{name}-{n}"), *words)
            found[name].append(figures["bytes"] / 1e6 / figures["seconds"])
            print(f"round {n + 1} {name}: {found[name][-1]:.2f} MB/s", flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = {name: median / medians["run_clm"] for name, median in medians.items()}
    facts = {"corpus": what, "bytes": figures["bytes"], "tokens": figures["tokens"]}
    different = (
        count_different(*(home / f"{corpus.stem}-{name}-0" for name in [*calls][1:])) if has("gigatoken") else None
    )
    return {**facts, "different_ids": different, "mb_per_second": found, "medians": medians, "ratios": ratios}


def has(library: str) -> bool:
    return find_spec(library) is not None


def count_different(one: Path, other: Path) -> int:
    """Count the positions at which two prepared folders have different ids."""
    from scratch_gpt.data.prepared.storage import PreparedRows

    pairs = zip(PreparedRows(one / "train"), PreparedRows(other / "train"), strict=True)
    return sum(int((first["input_ids"] != second["input_ids"]).sum()) for first, second in pairs)


def memory(home: Path, sizes: tuple[int, ...] = MEGABYTES) -> dict:
    runs = []
    for megabytes in sizes:
        corpus = write_generated(home, megabytes)
        folder = home / f"prepared-{megabytes}"
        figures, peak = call("ours", str(corpus), "train", str(folder), "--pack", "true", "--deduplicate", "exact")
        first, _ = call("first_batch", str(folder))
        run = {
            "megabytes": megabytes,
            **figures,
            "peak_anonymous_bytes": peak,
            "first_batch_seconds": first["seconds"],
        }
        runs.append(run)
        print(json.dumps(run), flush=True)
        corpus.unlink()
    return {"runs": runs, "ratio": runs[-1]["peak_anonymous_bytes"] / runs[0]["peak_anonymous_bytes"]}


def packed_and_padded(home: Path) -> dict:
    """Train packed and padded, in turns, on the paragraphs of the embedded documentation (a word to a page each)."""
    from scratch_gpt.data.sources.documents import open_documents

    paragraphs = [part for text in open_documents().rows["text"] for part in text.split("\n\n") if part.strip()]
    corpus = home / "ragged.jsonl"
    corpus.write_text("".join(json.dumps({"text": part}) + "\n" for part in paragraphs))
    figures: dict[str, list[float]] = {"packed": [], "padded": []}
    facts = {}
    for n in range(3):
        for name, how in (("packed", "--pack"), ("padded", "--pad")):
            folder = home / f"run-{name}-{n}"
            words = [*TINY, "--dataset", str(corpus), how, "true", "--max-steps", "120", "--eval-batches", "1"]
            command = [sys.executable, str(REPO / "training" / "pretrain.py"), *words, "--output-dir", str(folder)]
            subprocess.run(command, check=True, capture_output=True)
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][2:]
            figures[name].append(statistics.median(speeds))
            facts[name] = json.loads((folder / "manifest.json").read_text())["splits"]["train"]
            print(f"{name}: {figures[name][-1]:.0f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "documents": facts["packed"]["documents"],
        "tokens": facts["packed"]["tokens"],
        "padding_share": facts["packed"]["padding_share"],
        "tokens_per_second": figures,
        "medians": medians,
        "ratio": medians["packed"] / medians["padded"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "prepare.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["throughput", "generated", "memory", "packing", "large"],
        help="run only these parts and keep the rest of --out",
    )
    parser.add_argument("--call", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        name, *words = options.call
        print(json.dumps({"ours": ours, "run_clm": run_clm, "first_batch": first_batch}[name](*words)))
        return
    figures = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        home = Path(folder)
        parts = {
            "throughput": lambda: throughput(home, options.rounds),
            "generated": lambda: throughput(home, 1, MEGABYTES[-1]),
            "memory": lambda: memory(home),
            "packing": lambda: packed_and_padded(home),
            "large": lambda: memory(home, (LARGE,))["runs"][0],
        }
        for name in options.only or [*parts][:-1]:
            figures[name] = parts[name]()
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
