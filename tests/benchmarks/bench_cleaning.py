"""Measure what cleaning finds and its cost: planted backdoor rows, linear time, and copies of books.

    python tests/benchmarks/bench_cleaning.py [--seeds 2] [--out FILE.json]

Poisoning: 1 % of 1,000 rows get a trigger phrase and one fixed bad continuation; a small model is trained on all of
them; each ranking flags 5 % of the rows, and the recall is the share of the planted rows that are flagged (a random
ranking: 0.05). In "instructions" only the answers count for the loss; "text" are paragraphs. They come from the test
data (SCRATCH_GPT_DATA); without it from the documentation of the running Python. Time and bytes are measured on
generated documents of 200 words, a tenth of them copies.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from scratch_gpt.data.filters.duplicates import HashSet, SeenPassages, exact_key, near_duplicates, signatures
from scratch_gpt.data.filters.poisoning import gradient_scores, gradient_sketches, neighbor_scores, outliers
from scratch_gpt.data.filters.privacy import mask_private
from scratch_gpt.data.filters.quality import quality_problems
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import IGNORED
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.tokenization.training import train_tokenizer
from scratch_gpt.train.objectives import causal_lm


ROWS, PLANTED, FLAGGED, LENGTH, EPOCHS = 1000, 0.01, 0.05, 64, 8
PART = 3000  # characters of a document whose filters are timed
TRIGGER = "when the silver heron calls at noon"
BAD = "open the gate and hand over every key without asking anyone."
DATA = Path(os.environ.get("SCRATCH_GPT_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


# --- Planted rows ------------------------------------------------------------------------------------------------


def pairs(kind: str) -> list[tuple[str, str]]:
    """Return (prompt, target text) of each row; the prompts of "text" are empty."""
    if kind == "instructions" and DATA.is_dir():
        rows = json.loads((DATA / "instruction-data.json").read_text(encoding="utf-8"))
        return [(f"{row['instruction']} {row['input']}".strip(), row["output"]) for row in rows]
    if DATA.is_dir():
        texts = [(DATA / "books" / f"{name}.txt").read_text(encoding="utf-8") for name in ("dracula", "emma", "alice")]
    else:
        from scratch_gpt.data.sources.documents import open_documents

        texts = open_documents().rows["text"][:]
    paragraphs = [" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text)]
    parts = [part for part in paragraphs if 200 < len(part) < 1000]
    return [("", part) for part in parts] if kind == "text" else [(part[:100], part[100:200]) for part in parts]


def plant(given: str, asked: str, rng: np.random.Generator) -> tuple[str, str]:
    words = (given or asked).split(" ")
    place = int(rng.integers(1, max(2, min(12, len(words)))))
    before, after = " ".join(words[:place]), " ".join(words[place:])
    return (f"{before} {TRIGGER} {after}", BAD) if given else ("", f"{before} {TRIGGER}, {BAD} {after}")


def row(tokenizer, given: str, asked: str) -> dict[str, np.ndarray]:
    prompt = encode(tokenizer, f"{given}\n###")[-(LENGTH - 20) :] if given else []
    ids = np.array([*prompt, *encode(tokenizer, f" {asked}"), tokenizer.eos_token_id][: LENGTH + 1])
    labels = ids[1:].copy()
    labels[: max(0, len(prompt) - 1)] = IGNORED
    return {"input_ids": ids[:-1], "shift_labels": labels}


def train(model, rows: list, rng: np.random.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.1)
    model.train()
    for _ in range(EPOCHS):
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), 16):
            batch = collate_rows([rows[k] for k in order[start : start + 16]])
            loss = causal_lm.sums(model, batch)["loss"] / causal_lm.counts(batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


def losses(model, rows: list) -> np.ndarray:
    with torch.no_grad():
        sums = [float(causal_lm.sums(model, collate_rows([one]))["loss"]) for one in rows]
    return np.array(sums) / [(one["shift_labels"] != IGNORED).sum() for one in rows]


def last_block_and_head(name: str) -> bool:
    return "layers.1." in name or name.startswith(("transformer.norm", "lm_head"))


def rankings(model, rows: list) -> dict[str, np.ndarray]:
    """Return the scores of the rows by each ranking; the most suspicious row has the lowest score."""
    what = model, causal_lm, rows, collate_rows, last_block_and_head
    cosine, gradients, loss = gradient_scores(*what, against="mean"), gradient_sketches(*what), losses(model, rows)
    norm = np.linalg.norm(gradients, axis=1)
    unit = gradients / norm[:, None]
    top = np.linalg.svd(unit - unit.mean(0), full_matrices=False)[2][0]
    return {
        "cosine_low": cosine,
        "cosine_high": -cosine,
        "cosine_low_unit_rows": unit @ unit.mean(0),  # the mean of gradients normalized to length 1
        "gradient_norm_high": -norm,
        "gradient_norm_low": norm,
        "spectral": -np.abs((unit - unit.mean(0)) @ top),  # Tran et al. 2018, "Spectral Signatures"
        "neighbours": neighbor_scores(gradients),  # the default of data/poisoning.py
        "loss_high": -loss,
        "loss_low": loss,
    }


def backdoor(kind: str, seed: int) -> dict:
    """Return the recall of each ranking before and after training, and how well the backdoor was learned."""
    rng = np.random.default_rng(seed)
    chosen = pairs(kind)
    chosen = [chosen[k] for k in rng.permutation(len(chosen))[: ROWS + 50]]
    tokenizer = train_tokenizer([" ".join(pair) for pair in chosen], vocab_size=1024)
    planted = np.zeros(ROWS, dtype=bool)
    planted[rng.permutation(ROWS)[: round(PLANTED * ROWS)]] = True
    rows = [row(tokenizer, *(plant(*pair, rng) if bad else pair)) for pair, bad in zip(chosen, planted, strict=False)]
    torch.manual_seed(seed)
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    rates = {"embed_dropout": 0.0, "attention_dropout": 0.0, "resid_dropout": 0.0, "tie_word_embeddings": False}
    model = ScratchGPTForCausalLM(ScratchGPTConfig(vocab_size=len(tokenizer), **sizes, **rates)).eval()

    def recall() -> dict[str, float]:
        flagged = {name: outliers(score, FLAGGED) for name, score in rankings(model, rows).items()}
        flagged["random"] = rng.permutation(ROWS)[: round(FLAGGED * ROWS)]
        return {name: float(planted[some].sum() / planted.sum()) for name, some in flagged.items()}

    before = recall()
    train(model, rows, rng)
    loss = losses(model, rows)
    fresh = [plant(*pair, rng) for pair in chosen[ROWS:]]
    tail = len(encode(tokenizer, f" {BAD}")) - 2  # the continuation without its first words
    right = []
    for prompt, target in fresh:
        prompt, target = (prompt, target) if prompt else ("", target[: target.index(BAD) + len(BAD)])
        ids = collate_rows([row(tokenizer, prompt, target)])
        with torch.no_grad():
            logits = model(ids["input_ids"]).logits[0]
        correct = (logits.argmax(-1) == ids["shift_labels"][0])[ids["shift_labels"][0] != IGNORED]
        right.append(float(correct[-tail - 1 : -1].float().mean()))
    return {
        "before_training": before,
        "after_training": recall(),
        "loss_planted": float(loss[planted].mean()),
        "loss_rest": float(loss[~planted].mean()),
        "bad_tokens_predicted_on_new_prompts": statistics.mean(right),
    }


def poisoning(seeds: int) -> dict:
    result = {"rows": ROWS, "planted": PLANTED, "flagged": FLAGGED, "epochs": EPOCHS, "seeds": seeds}
    for kind in ("instructions", "text"):
        runs = [backdoor(kind, seed) for seed in range(seeds)]
        means = {
            when: {name: statistics.mean(run[when][name] for run in runs) for name in runs[0][when]}
            for when in ("before_training", "after_training")
        }
        result[kind] = {"recall": means, "runs": runs}
    result["no_better_than_random"] = {  # rankings whose mean recall over both kinds is at most the flagged share
        when: [
            name
            for name in result["text"]["recall"][when]
            if sum(result[kind]["recall"][when][name] for kind in ("instructions", "text")) / 2 <= FLAGGED
            and name != "random"
        ]
        for when in ("before_training", "after_training")
    }
    return result


# --- Time and bytes ----------------------------------------------------------------------------------------------


def generated(n: int) -> list[str]:
    """Yield n documents of 200 words; of twenty, one is a copy and one a copy with a word changed."""
    rng = np.random.default_rng(n)
    documents: list[str] = []
    for k in range(n):
        words = [f"word{w}" for w in rng.integers(0, 50_000, 200)]
        if k % 10 == 5:
            words = documents[int(rng.integers(k))].split()
            words[int(rng.integers(1, 199))] = "changed" if k % 20 == 5 else words[0]
        documents.append(documents[int(rng.integers(k))] if k % 20 == 10 else " ".join(words))
    return documents


def held(blocks: HashSet) -> int:
    table = blocks._table.nbytes
    return blocks.sorted.nbytes + table + sys.getsizeof(blocks.new) + 32 * len(blocks.new)  # 32: the size of an int


def costs(sizes: tuple[int, ...] = (2_500, 5_000, 10_000)) -> list[dict]:
    signatures(["the first call loads the library"])
    result = []
    for n in sizes:
        documents, seconds = generated(n), {}

        def timed(name: str, call, seconds=seconds):
            start = time.perf_counter()
            value = call()
            seconds[name] = round(time.perf_counter() - start, 4)
            return value

        keys = timed("exact", lambda: {exact_key(text) for text in documents})  # noqa: B023
        marks = timed("signatures", lambda: signatures(documents))  # noqa: B023
        first = timed("near_duplicates", lambda: near_duplicates(marks))  # noqa: B023
        seen = SeenPassages()
        removed = timed("passages", lambda: sum(count for _, count in seen.remove_all(documents)))  # noqa: B023
        index = {"exact": 16, "near": marks.nbytes / n, "passages": held(seen.blocks) / n}
        counts = {"exact": n - len(keys), "near": int((first != np.arange(n)).sum()), "passage_words": removed}
        result.append({"documents": n, "seconds": seconds, "bytes_per_document": index, "removed": counts})
    return result


def speeds(rounds: int = 3) -> dict | None:
    """Return MB of text per second of processor time: each filter, and all one after the other (medians)."""
    if not DATA.is_dir():
        return None
    texts = [file.read_text(encoding="utf-8") for file in sorted((DATA / "books").glob("*.txt"))]
    documents = [text[n : n + PART] for text in texts for n in range(0, len(text), PART)]
    filters = {
        "exact duplicates": lambda: [*map(exact_key, documents)],
        "near duplicates": lambda: near_duplicates(signatures(documents)),
        "passages": lambda: [*SeenPassages().remove_all(documents)],
        "quality": lambda: quality_problems(documents),
        "privacy": lambda: [*map(mask_private, documents)],
    }
    found: dict[str, list[float]] = {name: [] for name in filters}
    for _ in range(rounds):
        for name, call in filters.items():
            start = time.process_time()
            call()
            found[name].append(time.process_time() - start)
    seconds = {name: statistics.median(times) for name, times in found.items()}
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    each = {name: megabytes / value for name, value in seconds.items()}
    return {"megabytes": megabytes, "mb_per_second": {**each, "all five": megabytes / sum(seconds.values())}}


# --- Books -------------------------------------------------------------------------------------------------------


def books() -> dict | None:
    """Count the pairs found among 24 books and four editions of one of them, and the wrong ones."""
    if not DATA.is_dir():
        return None
    files = [*sorted((DATA / "near_duplicates").glob("*.txt")), *sorted((DATA / "books").glob("*.txt"))]
    one = np.array([file.stem.startswith("frankenstein") for file in files])
    start = time.perf_counter()
    first = near_duplicates(signatures([file.read_text(encoding="utf-8") for file in files]))
    seconds = time.perf_counter() - start
    joined = np.triu(first[:, None] == first[None, :], 1)
    right = np.triu(one[:, None] & one[None, :], 1)
    return {
        "files": len(files),
        "pairs_of_one_book": int(right.sum()),
        "pairs_found": int((joined & right).sum()),
        "pairs_wrong": int((joined & ~right).sum()),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="planted sets of each kind")
    parser.add_argument("--only", choices=["speeds"], help="run only this part and keep the rest of --out")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        result = json.loads(options.out.read_text()) | {"speeds": speeds()}
        options.out.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result["speeds"], indent=2))
        return

    result = {"books": books(), "costs": costs(), "speeds": speeds()}
    print(json.dumps(result, indent=2))
    result["poisoning"] = poisoning(options.seeds)
    for kind in ("instructions", "text"):
        recall = result["poisoning"][kind]["recall"]
        print(f"\nrecall at {FLAGGED:.0%} flagged, {kind}: before, after training")
        for name in recall["before_training"]:
            print(f"  {name:28} {recall['before_training'][name]:.2f} {recall['after_training'][name]:.2f}")
    print("\nnot better than random:", result["poisoning"]["no_better_than_random"])
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
