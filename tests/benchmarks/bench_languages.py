"""Compare the pre-tokenizers of byte-level BPE: compression of 27 languages, English and code, loss, and speed.

    python tests/benchmarks/bench_languages.py [--only compression loss speed] [--out FILE.json]

compression: characters and bytes per token of text that the tokenizer has not seen. Each language has its own
tokenizer, trained on the first four fifths of its declaration of human rights; one more is trained on all languages
together. For English (books) and Python code (the standard library) every tenth file is held out.
loss: bits per byte of held-out text after 300 steps of the preset tiny, with two seeds; both pre-tokenizers have the
same splits, weights and number of tokens per step.
speed: time of `encode_batch`, one thread; the pre-tokenizers take turns and the best of five rounds counts.

The texts are read from the data folder (SCRATCH_GPT_DATA). `gpt2 + marks` is GPT-2's pattern with combining marks as
letters, which llama.cpp does not have; `deepseek-v3` is measured here and not offered.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from scratch_gpt.tokenization.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from scratch_gpt.tokenization.tokenizer import encode_batch, tokenizer_report
from scratch_gpt.tokenization.training import train_tokenizer


REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SCRATCH_GPT_DATA", REPO.parent / "shared" / "data"))
SAMPLE_BYTES = 4_000_000
OWN, TOGETHER, LARGE = (500, 2000), (2000, 8000), (500, 2000, 8000)  # vocabularies
OFFERED = ("gpt2", "qwen35")
SEEDS, STEPS, ROUNDS = (0, 1), 300, 5

SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
OTHERS = {
    "gpt2 + marks": PreTokenizer(
        (r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+",), None
    ),
    "deepseek-v3": PreTokenizer(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}",
        ),
        "deepseek-v3",
    ),
}


# --- Texts -------------------------------------------------------------------------------------------------------


def languages() -> dict[str, tuple[str, str]]:
    """Return the text to train on and the held-out text of each language."""
    texts = {}
    for file in sorted((DATA / "multilingual").glob("udhr_*.txt")):
        text = file.read_text(encoding="utf-8")
        end = text.rfind("\n", 0, 4 * len(text) // 5)
        end = end if end > 0 else 4 * len(text) // 5
        texts[file.stem.removeprefix("udhr_")] = (text[:end], text[end:])
    return texts


def books() -> list[str]:
    """Return the English books."""
    return [file.read_text(encoding="utf-8") for file in sorted((DATA / "books").glob("*.txt"))]


def code() -> list[str]:
    """Return the files of Python's standard library, without its tests and installed packages."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted([*folder.glob("*.py"), *folder.glob("*/*.py")])
    files = [file for file in files if not {"test", "site-packages", "pydoc_data", "encodings"} & {*file.parts}]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


# --- Measurements ------------------------------------------------------------------------------------------------


def measure(train: list[str], held_out: list[str], vocab_size: int) -> dict:
    """Return the compression of held-out text by each pre-tokenizer."""
    rows = {}
    for name in PRE_TOKENIZERS:
        tokenizer = train_tokenizer(train, vocab_size, pre_tokenizer=name, sample_bytes=SAMPLE_BYTES)
        rows[name] = compress(tokenizer, held_out)
    return rows


def compress(tokenizer, held_out: list[str]) -> dict:
    """Return characters and bytes per token."""
    report = tokenizer_report(tokenizer, held_out)
    assert report["round_trip_failures"] == 0
    return {name: report[name] for name in ("vocab_size", "characters_per_token", "bytes_per_token")}


def compression() -> dict:
    """Return the compression of each language, of all together, and of English and code."""
    texts = languages()
    figures = {
        "own": {
            name: {size: measure([train], [held_out], size) for size in OWN}
            for name, (train, held_out) in texts.items()
        }
    }
    figures["together"] = {name: {} for name in texts}
    for size in TOGETHER:
        for pre_tokenizer in PRE_TOKENIZERS:
            trained = train_tokenizer([train for train, _ in texts.values()], size, pre_tokenizer=pre_tokenizer)
            for name, (_, held_out) in texts.items():
                figures["together"][name].setdefault(size, {})[pre_tokenizer] = compress(trained, [held_out])
    for name, documents in (("English", books()), ("Python code", code())):
        train, held_out = [text for n, text in enumerate(documents) if n % 10], documents[::10]
        figures[name] = {size: measure(train, held_out, size) for size in LARGE}
    return figures


def corpora(folder: Path) -> Iterator[tuple[str, str]]:
    """Write the texts of the trained models as files; yield names and the argument of --dataset."""
    yield "python-docs", "python-docs"
    for name, documents in (("English", books()), ("Python code", code()[::8])):
        target = folder / name.replace(" ", "-")
        target.mkdir()
        for n, text in enumerate(documents):
            (target / f"{n}.txt").write_text(text[:40_000], encoding="utf-8")
        yield name, str(target)


def loss() -> dict:
    """Return bits per byte of the validation text, by corpus, pre-tokenizer and seed."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset in corpora(Path(folder)):
            figures[name] = {}
            for kind in OFFERED:
                values = [train_model(Path(folder) / f"{kind}-{seed}", dataset, kind, seed) for seed in SEEDS]
                figures[name][kind] = {"seeds": values, "mean": statistics.mean(values)}
                print(name, kind, values, flush=True)
    return figures


def train_model(folder: Path, dataset: str, pre_tokenizer: str, seed: int) -> float:
    """Train a tiny model and return its bits per byte."""
    options = {
        "dataset": dataset,
        "pre-tokenizer": pre_tokenizer,
        "seed": seed,
        "max-steps": STEPS,
        "output-dir": folder,
        "overwrite": "true",
        "eval-every": STEPS,
        "checkpoint-every": STEPS,
        "mixed-precision": "no",
        "validation-fraction": 0.05,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPO / "training" / "pretrain.py"), *words]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "evaluation.json").read_text())["results"]["validation"]["bits_per_byte"]


def speed() -> dict:
    """Return seconds per million bytes of `encode_batch` for both pre-tokenizers, and their ratio."""
    texts = languages()
    english = [text[:20_000] for text in books()]
    texts_of = {
        "English": english,
        "Python code": [text[:20_000] for text in code()[::8]],
        "Hindi": ["".join(texts["hi"])] * 20,
    }
    figures = {}
    for name, documents in texts_of.items():
        size = sum(len(text.encode()) for text in documents) / 1e6
        tokenizers = {kind: train_tokenizer(documents, 4096, pre_tokenizer=kind) for kind in OFFERED}
        seconds: dict[str, list[float]] = {kind: [] for kind in OFFERED}
        for _ in range(ROUNDS):
            for kind, tokenizer in tokenizers.items():
                start = time.process_time()
                encode_batch(tokenizer, documents)
                seconds[kind].append((time.process_time() - start) / size)
        best = {kind: min(values) for kind, values in seconds.items()}
        figures[name] = {"megabytes": size, "cpu_seconds_per_megabyte": best, "ratio": best["qwen35"] / best["gpt2"]}
    return figures


def main() -> None:
    parts: dict[str, Callable[[], dict]] = {"compression": compression, "loss": loss, "speed": speed}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "languages.json")
    parser.add_argument("--only", nargs="+", choices=[*parts], default=[*parts])
    options = parser.parse_args()
    figures = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.only:
        if name == "compression":
            PRE_TOKENIZERS.update(OTHERS)
        figures[name] = parts[name]()
        for other in OTHERS:
            PRE_TOKENIZERS.pop(other, None)
        figures["python"] = platform.python_version()
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
        print(json.dumps(figures[name], indent=1))


if __name__ == "__main__":
    main()
