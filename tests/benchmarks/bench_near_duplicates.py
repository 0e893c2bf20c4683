"""Measure finding near-duplicates, next to datatrove's and text-dedup's MinHash: time, memory, recall, wrong removals.

    python -m venv .bench/near-duplicates
    .bench/near-duplicates/bin/pip install -r tests/benchmarks/near-duplicates-requirements.txt
    python tests/benchmarks/bench_near_duplicates.py --megabytes 50 --python .bench/near-duplicates/bin/python

The documents are pieces of 200 words of the books of the data folder (SCRATCH_GPT_DATA); without it of the embedded
documentation. Once all pieces are used they are cut again at other places, and 30 % of their words are replaced. Every
tenth document has one copy with 1 to 8 changed words, in a random later row. The true similarity of a pair
is the Jaccard similarity of its two sets of word 5-grams. A pair is found if one of its rows is removed. Each further
removed row is a false removal; those whose true similarity to another row reaches the threshold are counted.

Each way reads a JSON Lines file and ends with the rows to remove. It runs in a new process on one core, in turns with
the others. Time starts after the imports; processor time includes the processes that a way starts. "Same bands" are
ours: 21 bands of 6 hashes. The peers remove each pair that agrees in one band; ours also compares the complete
signatures of the pair. "Words by spaces" replaces datatrove's word tokenizer (spaCy, its default for English) with
str.split. text-dedup is stopped before it writes the remaining rows. Memory is anonymous memory, summed over
processes: pages that text-dedup shares with its one worker process count twice.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_tokenizers import DATA, REPO, anonymous_bytes
from load import foreign_share, processor_seconds


NGRAM, HASHES, THRESHOLD = 5, 128, 0.8
BANDS, WIDTH = 21, 6  # those of near_duplicates for 128 hashes and a threshold of 0.8
WORDS = 200  # words of a document
CHANGES = (1, 2, 3, 4, 6, 8)  # changed words of a copy
COPIES = 0.1  # share of the documents that have a copy
DELAY = 1000  # copies that wait for their place
NOISE = 0.3  # share of replaced words once all pieces of the books are used
BINS = ((0.0, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0))
BATCH = 1024  # texts that ours reads at a time
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
PEERS = {"datatrove": ("datatrove", "spacy", "tokenizers", "xxhash", "orjson"), "text_dedup": ("text-dedup", "xxhash")}
SAME = {"ngram": NGRAM, "bands": BANDS, "hashes_per_band": WIDTH}
WAYS = {
    "ours": {**SAME, "hashes": HASHES, "threshold": THRESHOLD},
    "datatrove, same bands, words by spaces": {**SAME, "hashes": BANDS * WIDTH, "words": "spaces"},
    "datatrove, defaults": {"ngram": NGRAM, "bands": 14, "hashes_per_band": 8, "hashes": 112, "words": "spacy"},
    "text_dedup, same bands, fastest hash": {**SAME, "hashes": HASHES, "hash_function": "xxh3", "hash_bits": 32},
    "text_dedup, default bands and hash": {  # it chooses these bands for 128 hashes and this threshold
        **SAME,
        "bands": 9,
        "hashes_per_band": 13,
        "hashes": HASHES,
        "threshold": THRESHOLD,
        "hash_function": "sha1",
        "hash_bits": 64,
    },
}


# --- The measured processes: a JSON Lines file -> the rows to remove -----------------------------------------------


def ours(corpus: str, folder: str, parameters: dict) -> Callable[[], list[int]]:
    import rensa  # noqa: F401

    from scratch_gpt.data.filters.duplicates import near_duplicates, signatures

    def batches() -> Iterator[list[str]]:
        with Path(corpus).open(encoding="utf-8") as lines:
            while texts := [json.loads(line)["text"] for _, line in zip(range(BATCH), lines, strict=False)]:
                yield texts

    def find() -> list[int]:
        hashes = {"ngram": parameters["ngram"], "permutations": parameters["hashes"]}
        marks = (signatures(texts, **hashes) for texts in batches())
        first = near_duplicates(marks, threshold=parameters["threshold"])
        return np.flatnonzero(first != np.arange(len(first))).tolist()

    return find


def datatrove(corpus: str, folder: str, parameters: dict) -> Callable[[], list[int]]:
    import spacy  # noqa: F401  # pyright: ignore[reportMissingImports]
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Spaces(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    config = MinhashConfig(parameters["ngram"], parameters["bands"], parameters["hashes_per_band"])
    language: Any = Spaces() if parameters["words"] == "spaces" else "eng"
    source, home = Path(corpus), Path(folder)
    marks, pairs, removed = (str(home / name) for name in ("signatures", "pairs", "removed"))
    stages = [
        (JsonlReader(str(source.parent), glob_pattern=source.name), MinhashDedupSignature(marks, config, language)),
        (MinhashDedupBuckets(marks, pairs, config=config),),
        (MinhashDedupCluster(pairs, removed, config=config),),
    ]

    def find() -> list[int]:
        for n, stage in enumerate(stages):
            tasks = parameters["bands"] if n == 1 else 1
            LocalPipelineExecutor([*stage], tasks=tasks, workers=1, logging_dir=str(home / f"logs-{n}")).run()
        file = home / "removed" / "000000.remove"
        return np.fromfile(file, dtype="<u4").tolist() if file.exists() else []

    return find


def text_dedup(corpus: str, folder: str, parameters: dict) -> Callable[[], list[int]]:
    from text_dedup import minhash  # pyright: ignore[reportMissingImports]

    class ClustersFoundError(Exception):
        pass

    class Timer(minhash.Timer):
        def __call__(self, name: str):
            if name == "Filtering":
                raise ClustersFoundError
            return super().__call__(name)

    minhash.Timer = Timer
    words = ["--path", "json", "--data_files", corpus, "--split", "train", "--column", "text", "--num_proc", "1"]
    words += ["--cache_dir", f"{folder}/cache", "--output", f"{folder}/output"]
    words += ["--ngram", str(parameters["ngram"]), "--num_perm", str(parameters["hashes"])]
    words += ["--hash_func", parameters["hash_function"], "--hash_bits", str(parameters["hash_bits"])]
    if "threshold" in parameters:  # it chooses the bands
        words += ["--threshold", str(parameters["threshold"])]
    else:
        words += ["--b", str(parameters["bands"]), "--r", str(parameters["hashes_per_band"])]

    def find() -> list[int]:
        try:
            minhash.main(words, standalone_mode=False)
        except ClustersFoundError:
            return sorted(row for row in [*minhash.uf.parent] if minhash.uf.find(row) != row)
        raise RuntimeError("text-dedup ended without its step Filtering.")

    return find


def answer(way: str, corpus: str, folder: str) -> None:
    """Import a way, print "loaded", find the rows to remove, and print the times; the rest of stdout is dropped."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    make = {"ours": ours, "datatrove": datatrove, "text_dedup": text_dedup}[way.split(",", 1)[0]]
    find = make(corpus, folder, WAYS[way])
    print("loaded", file=out, flush=True)
    start, before = time.perf_counter(), os.times()
    removed = find()
    seconds, after = time.perf_counter() - start, os.times()
    Path(folder, "removed.json").write_text(json.dumps(removed), encoding="utf-8")
    figures = {"seconds": seconds, "processor_seconds": sum(after[:4]) - sum(before[:4])}
    print(json.dumps(figures), file=out, flush=True)


# --- The corpus ----------------------------------------------------------------------------------------------------


def book_words() -> tuple[str, list[str]]:
    """Return (description, words) of the books, or of the embedded documentation."""
    from scratch_gpt.data.filters.gutenberg import strip_gutenberg
    from scratch_gpt.data.sources.documents import open_documents

    files = sorted((DATA / "books").glob("*.txt")) if DATA.is_dir() else []
    texts = [strip_gutenberg(file.read_text(encoding="utf-8")) for file in files] or open_documents().rows["text"][:]
    what = f"{len(files)} books" if files else "the embedded documentation"
    return what, [word for text in texts for word in text.split()]


def documents(words: list[str], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the words of documents as positions in `words`, without end."""
    every, noise = np.arange(len(words)), 0.0
    while True:
        for start in range(int(rng.integers(WORDS)), len(words) - WORDS, WORDS):
            document = every[start : start + WORDS]
            replaced = rng.random(WORDS) < noise
            yield np.where(replaced, rng.integers(len(words), size=WORDS), document)
        noise = NOISE


def grams(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"[^\W_]+", text.lower())
    return set(zip(*(found[n:] for n in range(NGRAM)), strict=False))


def jaccard(one: set, other: set) -> float:
    return len(one & other) / max(1, len(one | other))


def write_corpus(file: Path, megabytes: float) -> tuple[dict, list[tuple[int, int, float]]]:
    """Write the documents; return facts and the planted pairs as (row, row of the copy, true similarity)."""
    what, words = book_words()
    rng = np.random.default_rng(0)
    size, row, planted = 0, 0, []
    waiting: list[tuple[int, float, str]] = []  # row of the original, true similarity, copy

    with file.open("w", encoding="utf-8") as lines:

        def write(text: str) -> None:
            nonlocal size, row
            lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            size, row = size + len(text.encode()), row + 1

        def write_copy(at_most: int) -> None:
            while len(waiting) > at_most:
                original, similarity, text = waiting.pop(int(rng.integers(len(waiting))))
                planted.append((original, row, similarity))
                write(text)

        for places in documents(words, rng):
            text = " ".join(words[place] for place in places)
            if rng.random() < COPIES:
                copy = [words[place] for place in places]
                for place in rng.permutation(WORDS)[: rng.choice(CHANGES)]:
                    copy[place] = words[int(rng.integers(len(words)))]
                changed = " ".join(copy)
                waiting.append((row, jaccard(grams(text), grams(changed)), changed))
            write(text)
            write_copy(DELAY)
            if size + sum(len(text) for _, _, text in waiting) >= megabytes * 1e6:
                break
        write_copy(0)
    facts = {"text": what, "bytes": size, "documents": row, "words_per_document": WORDS, "planted_pairs": len(planted)}
    return facts, planted


# --- The benchmark -------------------------------------------------------------------------------------------------


def measure(python: str, way: str, corpus: Path) -> tuple[dict, list[int]]:
    """Return the figures of one turn and the rows it removes."""
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder, tempfile.TemporaryFile() as errors:
        more = {
            "PYTHONPATH": str(REPO),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": f"{folder}/hub",
            **dict.fromkeys(THREADS, "1"),
        }
        command = ["taskset", "-c", str(core), python, __file__, "--call", way, str(corpus), folder]
        began, used = processor_seconds(), children_seconds()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **more}
        )
        assert process.stdout is not None
        process.stdout.readline()
        loaded = peak = anonymous_bytes(process.pid)
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{way} failed: {errors.read().decode(errors='replace')[-2000:]}")
        figures = json.loads(process.stdout.read())
        own = children_seconds() - used
        figures |= {"processor_seconds_with_imports": own, "foreign_share": foreign_share(began, own)}
        memory = {"loaded_anonymous_bytes": loaded, "peak_anonymous_bytes": peak}
        return {**figures, **memory}, json.loads(Path(folder, "removed.json").read_text(encoding="utf-8"))


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def score(removed: list[int], planted: list[tuple[int, int, float]]) -> tuple[dict, list[int]]:
    """Return the pairs found by true similarity with the number of false removals, and the falsely removed rows."""
    rows = set(removed)
    bins, false = [], set(rows)
    for low, high in BINS:
        pairs = [pair for pair in planted if low <= pair[2] < high or pair[2] == high == 1]
        found = [pair for pair in pairs if rows & {*pair[:2]}]
        false -= {pair[1] if pair[1] in rows else pair[0] for pair in found}
        share = len(found) / len(pairs) if pairs else None
        bins.append({"similarity": [low, high], "pairs": len(pairs), "found": len(found), "share": share})
    return {"removed": len(removed), "pairs": bins, "false_removals": len(false)}, sorted(false)


def highest_similarity(corpus: Path, rows: set[int]) -> dict[int, float]:
    """Return the highest true similarity of each of these rows to any other row of the corpus."""
    if not rows:
        return {}

    def texts() -> Iterator[tuple[int, str]]:
        with corpus.open(encoding="utf-8") as lines:
            for row, line in enumerate(lines):
                yield row, json.loads(line)["text"]

    chosen = {row: grams(text) for row, text in texts() if row in rows}
    index = defaultdict(list)
    for row, members in chosen.items():
        for gram in members:
            index[gram].append(row)
    highest = dict.fromkeys(chosen, 0.0)
    for row, text in texts():
        members = grams(text)
        common: dict[int, int] = defaultdict(int)
        for gram in members & index.keys():
            for other in index[gram]:
                common[other] += 1
        for other, count in common.items():
            if other != row:
                highest[other] = max(highest[other], count / (len(members) + len(chosen[other]) - count))
    return highest


def versions(python: str) -> dict[str, str | None]:
    """Return the versions of the libraries in an environment, None for those it lacks."""
    names = ["rensa", "numpy", "datasets", *(name for needed in PEERS.values() for name in needed)]
    lines = (
        "import importlib.metadata as m, json",
        "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}",
        f"print(json.dumps({{name: found.get(name) for name in {sorted(set(names))}}}))",
    )
    done = subprocess.run([python, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def benchmark(home: Path, megabytes: float, python: str, rounds: int) -> dict:
    corpus = home / "corpus" / "documents.jsonl"
    corpus.parent.mkdir()
    facts, planted = write_corpus(corpus, megabytes)
    print(json.dumps(facts), flush=True)
    found = versions(python)
    lacking = {peer: [name for name in needed if not found[name]] for peer, needed in PEERS.items()}
    for peer, names in lacking.items():
        if names:
            print(f"{peer} is not measured: {python} lacks {', '.join(names)}.")
    ways = {way: parameters for way, parameters in WAYS.items() if not lacking.get(way.split(",", 1)[0])}
    turns: dict[str, list[dict]] = {way: [] for way in ways}
    results: dict[str, dict] = {}
    false: dict[str, list[int]] = {}
    for n in range(rounds):
        for way in ways:
            figures, removed = measure(sys.executable if way == "ours" else python, way, corpus)
            turns[way].append(figures)
            results[way], false[way] = score(removed, planted)
            print(f"round {n + 1} {way}: {json.dumps(figures | results[way])}", flush=True)
    highest = highest_similarity(corpus, {row for rows in false.values() for row in rows})
    table = {}
    for way, parameters in WAYS.items():
        if way not in ways:
            table[way] = None
            continue
        medians = {name: median(turn[name] for turn in turns[way]) for name in turns[way][0]}
        size = facts["bytes"] / 1e6
        speeds = {
            "mb_per_second": size / medians["seconds"],
            "mb_per_processor_second": size / medians["processor_seconds"],
        }
        similar = sum(highest[row] >= THRESHOLD for row in false[way])
        outcome = results[way] | {"false_removals_with_a_similar_row": similar}
        table[way] = {"parameters": parameters, **speeds, **medians, **outcome, "turns": turns[way]}
    return {
        "corpus": facts,
        "machine": {"processor": processor(), "python": platform.python_version(), "date": date.today().isoformat()},
        "workers": 1,
        "cores": 1,
        "rounds": rounds,
        "versions": {"ours": {name: versions(sys.executable)[name] for name in ("rensa", "numpy")}, "peers": found},
        "ways": table,
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=50, help="size of the generated text (default: 50)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of an environment with the peers")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each way; figures are medians")
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "near_duplicates.json")
    parser.add_argument("--call", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        answer(*options.call)
        return
    sys.path.insert(0, str(REPO))
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(Path(folder), options.megabytes, options.python, options.rounds)
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    known[f"{options.megabytes:g}"] = figures
    options.out.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
