"""Write the remaining rows to the files of a prepared folder, and the list of flagged rows and the report.

Not a recipe itself.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tqdm.auto import tqdm

from scratch_gpt.conversion.load import load_model
from scratch_gpt.data.filters.poisoning import gradient_scores, outliers
from scratch_gpt.data.filters.quality import perplexity_outliers
from scratch_gpt.data.manifest import hash_of
from scratch_gpt.data.prepared.mixture import mix, target_shares
from scratch_gpt.data.prepared.pipeline import MARK_COLUMNS, in_parts, removed_rows, rows_at, texts_of, texts_of_table
from scratch_gpt.data.prepared.report import report_page
from scratch_gpt.data.prepared.storage import PreparedRows
from scratch_gpt.data.prepared.writing import Joined, Tokens, encode_part, write_documents, write_texts, write_windows
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import IGNORED, require_full_window
from scratch_gpt.evaluation.losses import row_losses
from scratch_gpt.tokenization.documents import encode_documents
from scratch_gpt.tokenization.encoders import Encoder, spread
from scratch_gpt.tokenization.pre_tokenizers import mark_share
from scratch_gpt.tokenization.tokenizer import count_ids, decode, encode_batch, end_of_text_id, load_tokenizer
from scratch_gpt.tokenization.training import sample_texts, train_tokenizer
from scratch_gpt.train.objectives import causal_lm
from scratch_gpt.utils.files import write_text
from scratch_gpt.utils.foreign import read_json
from scratch_gpt.utils.watchdog import beat
from scratch_gpt_training.support.command_line import parse_numbers
from scratch_gpt_training.support.options import vocabulary_size
from scratch_gpt_training.support.run.models import print_advice


if TYPE_CHECKING:
    from scratch_gpt_training.prepare import PrepareRun


MANY = 4  # epochs; more add little (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models")
EXAMPLES = 5  # removed rows of each filter in the report
COMPARED = 16_384  # rows of a block; gradients are compared within a block


def progress_bar(title: str, unit: str = "part") -> Callable[[Iterable], Iterator]:
    """Return a function that iterates with a progress bar, shown after a second, and calls `watchdog.beat`."""

    def iterate(items: Iterable) -> Iterator:
        for item in tqdm(items, desc=title, delay=1, unit=unit):
            yield item
            beat()

    return iterate


def list_unusual(run: "PrepareRun", tables: list[list], splits: list[dict], selection, out: Path) -> None:
    """Write flagged.jsonl: training rows with a high perplexity or a suspicious gradient. No row is removed."""
    if run.reference_model is None:
        return
    model = load_model(run.reference_model).eval()
    tokenizer = load_tokenizer(run.reference_model)
    context, eos = model.config.max_position_embeddings, end_of_text_id(tokenizer)
    texts = [
        "\n".join(texts_of({name: value for name, value in row.items() if name not in MARK_COLUMNS}))
        for of_corpus, of_splits in zip(tables, splits, strict=True)
        for row in rows_at(of_corpus, of_splits["train"])
    ]
    rows = []
    encoded = encode_documents(texts, partial(encode_batch, tokenizer), eos)
    for document in chain.from_iterable(np.split(part.ids, np.cumsum(part.lengths)[:-1]) for part in encoded):
        ids = document[: context + 1].astype(np.int64)
        rows.append(
            {"input_ids": ids[:-1], "shift_labels": ids[1:]}
            if len(ids) > 1
            else {"input_ids": ids, "shift_labels": np.array([IGNORED])}
        )
    collate = partial(collate_rows, pad_token_id=eos)
    flagged = {}
    losses = row_losses(model, progress_bar("Scoring", "row")(rows), collate, causal_lm)
    flagged["perplexity"] = [(int(n), float(np.exp(losses[n]))) for n in np.flatnonzero(perplexity_outliers(losses))]
    if run.poisoning:
        last = f"layers.{model.config.num_hidden_layers - 1}."
        scores = np.empty(len(rows))

        def is_chosen(name: str) -> bool:  # the last block and all norms
            return last in name or "norm" in name.rsplit(".", 2)[-2]

        for start in range(0, len(rows), COMPARED):
            block = rows[start : start + COMPARED]
            scores[start : start + len(block)] = gradient_scores(model, causal_lm, block, collate, is_chosen)
            beat()
        flagged["poisoning"] = [(int(n), float(scores[n])) for n in outliers(scores)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "flagged.jsonl").open("w", encoding="utf-8") as lines:
        for name, pairs in flagged.items():
            selection.counts[name] = {"in": len(rows), "removed": 0, "flagged": len(pairs)}
            for n, score in pairs:
                line = {"filter": name, "score": score, "text": texts[n]}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def train_on_splits(run: "PrepareRun", tables: list[list], splits: list[dict], work: Path):
    """Return a tokenizer trained on the training documents; it is stored in `work` and trained only once."""
    folder = work / "tokenizer"
    if not folder.exists():
        print("Training a tokenizer")
        texts = (
            row["text"]
            for of_corpus, split in zip(tables, splits, strict=True)
            for row in rows_at(of_corpus, split["train"])
        )
        sample = sample_texts(texts, seed=run.seed)
        print_advice(run.pre_tokenizer, mark_share(sample))
        tokenizer = train_tokenizer(sample, vocabulary_size(run), pre_tokenizer=run.pre_tokenizer, encoder=run.encoder)
        tokenizer.save_pretrained(folder.with_name(".writing-tokenizer"))
        folder.with_name(".writing-tokenizer").replace(folder)
    return load_tokenizer(folder)


def make_encoder(run: "PrepareRun", tables: list[list], tokenizer) -> Encoder:
    """Return the encoder of all corpora, with texts of all their tables as its sample."""
    columns = [table.column("text") for of_corpus in tables for table in of_corpus if len(table)]
    ends = np.cumsum([len(column) for column in columns])

    def text(n: int) -> str:
        k = int(np.searchsorted(ends, n, side="right"))
        return columns[k][n - int(ends[k])].as_py() or ""

    return Encoder(tokenizer, run.encoder, lambda: spread(int(ends[-1]), text))


def encode_corpora(
    corpora: list, tables: list[list], splits: list[dict], tokenizer, encoder: Encoder, work: Path
) -> tuple[list, dict[str, Any] | None]:
    """Return the token ids of each corpus' documents by row number, and the record of the encoder.

    Rows outside all splits are not encoded.
    """
    eos, vocab_size, record_file = end_of_text_id(tokenizer), count_ids(tokenizer), work / "encoder.json"

    def encode_table(of_corpus: list, ends: list[int], is_used: np.ndarray, k: int) -> Any:
        part = encode_part(texts_of_table(of_corpus[k], is_used[ends[k] : ends[k + 1]]), encoder, eos, vocab_size)
        write_text(record_file, json.dumps(encoder.record))  # a later call may find all parts complete
        return part

    tokens = []
    for n, (corpus, of_corpus, of_splits) in enumerate(zip(corpora, tables, splits, strict=True)):
        ends = [0]
        for table in of_corpus:
            ends.append(ends[-1] + len(table))
        is_used = np.zeros(ends[-1], dtype=bool)
        is_used[np.concatenate([*of_splits.values()])] = True
        make = partial(encode_table, of_corpus, ends, is_used)
        parts = in_parts(work / f"tokens-{n}", len(of_corpus), make, progress_bar(f"Tokenizing {corpus.name}"))
        tokens.append(Tokens(parts))
    return tokens, read_json(record_file) if record_file.exists() else None


def order(run: "PrepareRun", corpora: list, lengths: list, splits: list[dict], split: str):
    """Return the source and document numbers of a split in order, and the record of a training mixture or None."""
    numbers = {n: of_corpus[split] for n, of_corpus in enumerate(splits) if split in of_corpus}
    if split != "train" or run.mixture is None:
        source = np.concatenate([np.full(len(documents), n, np.int16) for n, documents in numbers.items()])
        return source, np.concatenate([*numbers.values()]), None
    sizes = {corpus.record["name"]: lengths[n][numbers[n]] for n, corpus in enumerate(corpora)}
    tokens = {name: int(lengths_of_rows.sum()) for name, lengths_of_rows in sizes.items()}
    weights = {corpus.record["name"]: corpus.weight for corpus in corpora}
    epochs = None
    if run.mixture_epochs is not None:  # prepare.py has checked that every corpus has a number
        repetitions = cast(dict[str, float], parse_numbers(run.mixture_epochs, "mixture_epochs"))
        epochs = {corpus.record["name"]: repetitions[corpus.name] for corpus in corpora}
    target = target_shares(tokens, None if None in weights.values() else weights, run.alpha)
    mixture = mix(sizes, target, run.seed, run.stopping_strategy, epochs)
    document = np.empty(len(mixture.document), dtype=np.int64)
    for n in numbers:
        document[mixture.source == n] = numbers[n][mixture.document[mixture.source == n]]
    for name, count in mixture.epochs.items():
        if count > MANY:
            print(
                f"The mixture has {count:.1f} epochs of {name}: {mixture.tokens[name]:,} tokens from {tokens[name]:,}."
            )
    record = {
        "asked": None if epochs else target,
        "actual": mixture.shares,
        "alpha": run.alpha if None in weights.values() and epochs is None else None,
        "epochs": mixture.epochs,
        "tokens": mixture.tokens,
        "stopping_strategy": None if epochs else run.stopping_strategy,
    }
    return mixture.source, document, record


def write_splits(run: "PrepareRun", corpora: list, tokens: list, splits: list[dict], vocab_size: int, out: Path):
    """Write the rows of each split; return manifest entries, the mixture's record and the tokens of each document."""
    records, lengths, mixture = {}, {}, None
    for name in used_splits(splits):
        source, document, record = order(run, corpora, [of_corpus.lengths for of_corpus in tokens], splits, name)
        mixture = record or mixture
        stream = Joined(tokens, source, document)
        lengths[name] = np.diff(stream.ends, prepend=0)
        progress, facts = progress_bar(f"Writing {name}"), {}
        if run.pack or run.pad:
            options = {"max_length": run.max_length, "pack": run.pack}
            parts, padding, cut_share = write_documents(stream, out / name, vocab_size, progress, **options)
            facts = {"padding_share": padding, "cut_share": cut_share} if run.pack else {"cut_share": cut_share}
        else:
            require_full_window(stream, run.max_length, name)
            # Training windows may overlap; each held-out token is a target once.
            options = (
                {"stride": run.stride, "overlap": run.overlap, "drop_tail": run.drop_tail} if name == "train" else {}
            )
            parts = write_windows(stream, out / name, vocab_size, progress, max_length=run.max_length, **options)
        records[name] = {
            "documents": len(document),
            "bytes": sum(int(tokens[n].bytes[document[source == n]].sum()) for n in range(len(tokens))),
            "rows": sum(part.rows for part in parts),
            "tokens": len(stream),
            "asked": sum(part.targets for part in parts),
            **facts,
            "sha256": hash_of([part.sha256 for part in parts]),
        }
    return records, mixture, lengths


def write_cleaned(run: "PrepareRun", corpora: list, tables: list[list], splits: list[dict], out: Path):
    """Write the cleaned rows of each split; return manifest entries, the mixture's record and the size of each row."""
    records, lengths, mixture = {}, {}, None
    sizes = [np.concatenate([table.column("_bytes").to_numpy() for table in of_corpus]) for of_corpus in tables]
    for name in used_splits(splits):
        source, document, record = order(run, corpora, sizes, splits, name)  # without a tokenizer, shares count bytes
        mixture = record or mixture
        parts = write_texts(tables, source, document, out / name, progress_bar(f"Writing {name}"))
        lengths[name] = np.concatenate([sizes[n][document[source == n]] for n in range(len(tables))])
        records[name] = {
            "documents": len(document),
            "bytes": sum(int(sizes[n][document[source == n]].sum()) for n in range(len(tables))),
            "rows": sum(rows for rows, _ in parts),
            "sha256": hash_of([content for _, content in parts]),
        }
    return records, mixture, lengths


def used_splits(splits: list[dict]) -> list[str]:
    """Return the names of the splits that at least one corpus has, in order."""
    return [name for name in ("train", "validation", "test") if any(name in of_corpus for of_corpus in splits)]


def write_report(manifest: dict[str, Any], corpora: list, tables: list, selection, lengths: dict, out: Path) -> None:
    """Write report.html with the first removed rows of each filter and one row; if packed, one with many documents."""
    examples: dict[str, list[tuple[str, str]]] = {name: [] for name in selection.names}
    for line in removed_rows(corpora, tables, selection):
        if len(examples[line["filter"]]) < EXAMPLES:
            examples[line["filter"]].append((line["why"] or "", "\n".join(texts_of(line["row"]))[:500]))
    row = pieces = None
    if manifest["task"] == "pretrain":
        rows = PreparedRows(out / "train")
        sample = [rows[k] for k in range(0, len(rows), max(1, len(rows) // 200))]
        row = (
            max(sample, key=lambda row: (row["position_ids"] == 0).sum()) if "position_ids" in sample[0] else sample[0]
        )
        tokenizer = load_tokenizer(out / "tokenizer")
        pieces = [decode(tokenizer, [id]) for id in row["input_ids"].tolist()]
    write_text(out / "report.html", report_page(manifest, lengths=lengths, examples=examples, row=row, pieces=pieces))
