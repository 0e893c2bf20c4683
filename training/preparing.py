"""A parsed preparation -> a prepared folder: the stages, and what may stand in the folder. Not a recipe itself."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from recipe import check_writable, parse_numbers, relative
from scratch_gpt.checkpoints import write_text
from scratch_gpt.conversion import load_model
from scratch_gpt.data.assembly import Joined, Tokens, encode_part, write_documents, write_texts, write_windows
from scratch_gpt.data.cleaning import (
    QualityRules,
    blocked_term,
    load_block_list,
    mask_private,
    perplexity_outliers,
    quality_problem,
)
from scratch_gpt.data.collate import collate_rows
from scratch_gpt.data.duplicates import (
    SeenPassages,
    contaminated_share,
    exact_key,
    near_duplicates,
    ngram_hashes,
    signatures,
)
from scratch_gpt.data.manifest import NAME, file_record, hash_of, make_manifest, read_manifest, verify_files
from scratch_gpt.data.mixture import mix, target_shares
from scratch_gpt.data.pipeline import (
    MARKS,
    Filter,
    Selection,
    binary_column,
    change_part,
    clean_part,
    first_of_its_kind,
    in_parts,
    part_bounds,
    rows_at,
    sizes_of_texts,
    texts_of,
    texts_of_table,
)
from scratch_gpt.data.poisoning import gradient_scores, outliers
from scratch_gpt.data.prepared import PreparedRows
from scratch_gpt.data.report import report_page
from scratch_gpt.data.sources import cut_single, describe_source, open_column, open_rows, split_numbers
from scratch_gpt.data.windows import IGNORED, require_full_window
from scratch_gpt.evaluation import row_losses
from scratch_gpt.objectives import causal_lm
from scratch_gpt.tokenizer import count_ids, decode, encode_batch, end_of_text_id, fingerprint, load_tokenizer
from scratch_gpt.tokenizer_training import train_tokenizer


EXAMPLES = 5  # of what each filter has removed, in the report
COMPARED = 16_384  # rows whose gradients are compared with each other
FORMAT = 1  # of the parts that an interrupted run leaves; another one starts anew


class Corpus(NamedTuple):
    """One source, opened."""

    name: str
    rows: Any  # datasets.Dataset
    record: dict[str, Any]
    weight: float | None
    splits: dict[str, Any] | None  # numbers of rows, where these decide it


# --- The folder --------------------------------------------------------------------------------------------------


def settle_folder(run: Any, plan: str) -> tuple[Path, bool]:
    """The folder to work in, and whether this very preparation is done; ValueError where it may not be used."""
    folder = Path(run.output_dir)
    work = folder / ".work"
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"output_dir {run.output_dir}: {path} is a file. Give a folder.")
    check_writable(folder)
    if (folder / NAME).exists() and not run.overwrite:
        manifest = read_manifest(folder)
        if manifest.get("plan") != plan:
            raise ValueError(
                f"output_dir {run.output_dir} holds data that were prepared otherwise. --overwrite true replaces "
                "them, another --output-dir leaves them alone."
            )
        verify_files(folder, manifest)
        return work, True
    found = work / "plan.txt"
    if found.exists() and found.read_text() != plan:
        if not run.overwrite:
            raise ValueError(
                f"output_dir {run.output_dir} holds an unfinished preparation of other data or settings. --overwrite "
                "true drops it, another --output-dir leaves it alone."
            )
        shutil.rmtree(work)
    if folder.is_dir() and not work.exists() and not (folder / NAME).exists() and any(folder.iterdir()):
        raise ValueError(f"output_dir {run.output_dir} holds files, and not those of a preparation. Give another.")
    if found.exists():
        print(f"Going on with the preparation that {run.output_dir} holds.")
    work.mkdir(parents=True, exist_ok=True)
    write_text(found, plan)
    return work, False


def make_plan(run: Any, sources: list[dict[str, Any]]) -> str:
    """A hash of all that decides what comes out: the same plan, the same rows."""
    this_call = ("output_dir", "overwrite", "write_removed", "report")
    config = {name: value for name, value in asdict(run).items() if name not in this_call}
    for name in ("tokenizer", "reference_model", "block_list", "contamination"):
        path = Path(config[name]) if config[name] else None
        if path is not None and path.exists():  # what it holds decides, not where it lies
            files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
            config[name] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    content = json.dumps([FORMAT, config, sources], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


# --- The stages --------------------------------------------------------------------------------------------------


def open_corpora(run: Any) -> list[Corpus]:
    """Each source with its record; ValueError where one cannot be opened or holds no such column."""
    mixture = {run.dataset: None} if run.mixture is None else parse_numbers(run.mixture, "mixture")
    corpora = []
    for name, weight in mixture.items():
        inside = Path(run.dataset) / name  # a corpus may be named by its place in the folder --dataset
        dataset = str(inside) if run.mixture and not Path(name).exists() and inside.exists() else name
        where = (dataset, run.dataset_config, run.dataset_split, run.dataset_revision)
        rows = open_rows(*where) if run.task == "text" else open_column(*where, run.text_column)
        record, splits = {"name": relative(name), **describe_source(*where), "rows": len(rows)}, None
        if run.task == "pretrain" and run.mixture is None:
            rows, splits = cut_single(rows, run.validation_fraction, run.test_fraction)
        corpora.append(Corpus(name, rows, record, weight, splits))
    return corpora


def make_filters(run: Any) -> list:
    """What each row is looked at for, in order."""
    filters = [Filter("empty", problem=lambda text: None if text and not text.isspace() else "no text")]
    if run.quality or run.languages:
        languages = tuple(run.languages.split(",")) if run.languages else ()
        no_rules = dict.fromkeys((item.name for item in fields(QualityRules)), None)
        rules = QualityRules(**{**({} if run.quality else no_rules), "languages": languages})
        filters.append(Filter("quality", problem=lambda text: quality_problem(text, rules=rules)))
    if run.block_list:
        patterns = load_block_list(run.block_list)
        filters.append(Filter("block_list", problem=lambda text: blocked_term(text, patterns)))
    if run.contamination:
        texts = ["\n".join(texts_of(row)) for row in open_rows(run.contamination)]
        hashes = ngram_hashes(texts, n=run.contamination_ngram)

        def contaminated(text: str) -> str | None:
            share = contaminated_share(text, hashes, n=run.contamination_ngram)
            return f"{share:.0%} of its n-grams" if share > run.contamination_share else None

        filters.append(Filter("contamination", problem=contaminated))
    if run.privacy == "drop":

        def found_kinds(text: str) -> str:
            return ", ".join(kind for kind, count in mask_private(text)[1].items() if count)

        filters.append(Filter("privacy", problem=lambda text: found_kinds(text) or None))
    if run.privacy == "mask":
        filters.append(Filter("privacy", change=lambda text: mask_private(text)[0]))
    return filters


def shown(what: str):
    """A progress bar that says what is done; it appears where that takes longer than a second."""
    return partial(tqdm, desc=what, delay=1, unit="part")


def clean(run: Any, corpora: list[Corpus], filters: list, work: Path) -> list[list]:
    """Corpora -> the tables of each, filtered and marked."""
    sign = partial(signatures, ngram=run.duplicate_ngram) if run.deduplicate == "near" else None
    key = exact_key if run.deduplicate != "off" else None
    tables = []
    for n, corpus in enumerate(corpora):
        table = corpus.rows.with_format("arrow")[:]
        bounds = part_bounds(table)
        make = lambda k, table=table, bounds=bounds: clean_part(  # noqa: E731
            table.slice(bounds[k], bounds[k + 1] - bounds[k]), filters, key, sign
        )
        tables.append(in_parts(work / f"clean-{n}", len(bounds) - 1, make, shown(f"Cleaning {corpus.name}")))
    return tables


def remove_duplicates(run: Any, tables: list, selection) -> None:
    """Mark the rows that are there already; a near-duplicate is removed in favour of the first of its cluster."""
    if run.deduplicate == "off":
        return
    keys = np.concatenate([*binary_column(tables, "_key", np.uint8)])
    selection.remove("exact_duplicates", ~first_of_its_kind(keys, selection.alive))
    if run.deduplicate == "near":
        alive = np.flatnonzero(selection.alive)
        made = np.concatenate([*binary_column(tables, "_signature", np.uint32)])[alive]
        first = near_duplicates(made, threshold=run.duplicate_threshold)
        again = np.zeros(len(selection.by), dtype=bool)
        again[alive] = first != np.arange(len(alive))
        selection.remove("near_duplicates", again)


def cut_passages(run: Any, tables: list, selection, work: Path) -> list:
    """The tables with every passage taken out that came before; a row of which nothing is left goes."""
    if run.deduplicate_passages is None:
        return tables
    seen = SeenPassages(length=run.deduplicate_passages)
    starts = np.cumsum([0, *map(len, tables)])

    def make(k: int):
        alive = selection.alive[starts[k] : starts[k + 1]]
        return change_part(tables[k], alive, lambda text: seen.remove(text)[0])

    shutil.rmtree(work / "passages", ignore_errors=True)  # what was seen is in no file: all parts are made again
    cut = in_parts(work / "passages", len(tables), make, shown("Cutting passages"))
    emptied = np.concatenate([table.column("_emptied").to_numpy() for table in cut])
    changed = np.concatenate([table.column("_shortened").to_numpy() for table in cut])
    selection.remove("passages", emptied)
    selection.counts["passages"]["changed"] = int(changed.sum())
    return cut


def split(run: Any, corpora: list[Corpus], sizes: list[int], selection) -> list[dict]:
    """For each corpus {"train", "validation", "test"} -> numbers of its rows."""
    found, start = [], 0
    for corpus, size in zip(corpora, sizes, strict=True):
        left = np.flatnonzero(selection.alive[start : start + size])
        start += size
        if corpus.splits is not None:
            found.append({name: chosen[np.isin(chosen, left)] for name, chosen in corpus.splits.items()})
            continue
        if len(left) == 0:
            raise ValueError(f"Nothing of {corpus.name} is left after the filters: {selection.counts}.")
        fractions = (run.validation_fraction, run.test_fraction)
        few = len(left) < 1 + sum(fraction > 0 for fraction in fractions)
        if few and len(corpora) > 1:
            print(f"{corpus.name} has {len(left)} document(s), all of which are trained on: too few to hold some out.")
            fractions = (0.0, 0.0)
        numbers = split_numbers(len(left), *fractions, run.seed)
        found.append({name: left[chosen] for name, chosen in numbers.items()})
    return found


def list_unusual(run: Any, tables: list[list], splits: list[dict], selection, out: Path) -> None:
    """Training rows that a model finds unlikely or whose gradients look planted -> flagged.jsonl; none is removed."""
    if run.reference_model is None:
        return
    model = load_model(run.reference_model).eval()
    tokenizer = load_tokenizer(run.reference_model)
    context, eos = model.config.max_position_embeddings, end_of_text_id(tokenizer)
    texts = [
        "\n".join(texts_of({name: value for name, value in row.items() if name not in MARKS}))
        for of_corpus, found in zip(tables, splits, strict=True)
        for row in rows_at(of_corpus, found["train"])
    ]
    rows = []
    for text in texts:
        ids = np.array([*encode_batch(tokenizer, [text])[0], eos][: context + 1])
        rows.append(
            {"input_ids": ids[:-1], "shift_labels": ids[1:]}
            if len(ids) > 1
            else {"input_ids": ids, "shift_labels": np.array([IGNORED])}
        )
    collate = partial(collate_rows, pad_token_id=eos)
    found = {}
    losses = row_losses(model, tqdm(rows, "Scoring", delay=1), collate, causal_lm)
    found["perplexity"] = [(int(n), float(np.exp(losses[n]))) for n in np.flatnonzero(perplexity_outliers(losses))]
    if run.poisoning:
        last = f"layers.{model.config.num_hidden_layers - 1}."
        scores = np.empty(len(rows))
        for start in range(0, len(rows), COMPARED):  # every row with those of its block
            block = rows[start : start + COMPARED]
            chosen = lambda name: last in name or "norm" in name.rsplit(".", 2)[-2]  # noqa: E731
            scores[start : start + len(block)] = gradient_scores(model, causal_lm, block, collate, chosen)
        found["poisoning"] = [(int(n), float(scores[n])) for n in outliers(scores)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "flagged.jsonl").open("w", encoding="utf-8") as lines:
        for name, pairs in found.items():
            selection.counts[name] = {"in": len(rows), "removed": 0, "flagged": len(pairs)}
            for n, score in pairs:
                line = {"filter": name, "score": score, "text": texts[n]}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def choose_tokenizer(run: Any, tables: list[list], splits: list[dict], work: Path):
    """The tokenizer that is asked for, or one trained on the training documents (once: it is kept in `work`)."""
    folder = work / "tokenizer"
    if run.tokenizer not in (None, "train"):
        return load_tokenizer(run.tokenizer, run.tokenizer_revision)
    if not folder.exists():
        print("Training a tokenizer")
        texts = (
            row["text"]
            for of_corpus, split in zip(tables, splits, strict=True)
            for row in rows_at(of_corpus, split["train"])
        )
        tokenizer = train_tokenizer(texts, run.vocab_size, seed=run.seed)
        tokenizer.save_pretrained(folder.with_name(".writing-tokenizer"))
        folder.with_name(".writing-tokenizer").replace(folder)
    return load_tokenizer(folder)


def encode(corpora: list[Corpus], tables: list[list], selection, tokenizer, work: Path) -> list:
    """The token ids of each corpus' documents, under the numbers of their rows."""
    encode_texts = partial(
        encode_part,
        encode_batch=partial(encode_batch, tokenizer),
        eos_token_id=end_of_text_id(tokenizer),
        vocab_size=count_ids(tokenizer),
    )
    found, alive = [], selection.alive
    for n, (corpus, of_corpus) in enumerate(zip(corpora, tables, strict=True)):
        ends = [0]
        for table in of_corpus:
            ends.append(ends[-1] + len(table))
        make = lambda k, t=of_corpus, e=ends, a=alive: encode_texts(texts_of_table(t[k], a[e[k] : e[k + 1]]))  # noqa: E731
        parts = in_parts(work / f"tokens-{n}", len(of_corpus), make, shown(f"Tokenizing {corpus.name}"))
        found.append(Tokens(parts))
        alive = alive[ends[-1] :]
    return found


def order(run: Any, corpora: list[Corpus], lengths: list, splits: list[dict], split: str):
    """(source, document) of each document of a split in order, and for the training mixture what it came to be."""
    numbers = {n: of_corpus[split] for n, of_corpus in enumerate(splits) if split in of_corpus}
    if split != "train" or run.mixture is None:
        source = np.concatenate([np.full(len(found), n, np.int16) for n, found in numbers.items()])
        return source, np.concatenate([*numbers.values()]), None
    sizes = {corpus.name: lengths[n][numbers[n]] for n, corpus in enumerate(corpora)}
    tokens = {name: int(found.sum()) for name, found in sizes.items()}
    weights = {corpus.name: corpus.weight for corpus in corpora}
    epochs = None if run.mixture_epochs is None else parse_numbers(run.mixture_epochs, "mixture_epochs")
    asked = target_shares(tokens, None if None in weights.values() else weights, run.alpha)
    mixture = mix(sizes, asked, run.seed, run.stopping_strategy, epochs)
    document = np.empty(len(mixture.document), dtype=np.int64)
    for n in numbers:
        document[mixture.source == n] = numbers[n][mixture.document[mixture.source == n]]
    record = {
        "asked": None if epochs else asked,
        "actual": mixture.shares,
        "alpha": run.alpha if None in weights.values() and epochs is None else None,
        "epochs": mixture.epochs,
        "tokens": mixture.tokens,
        "stopping_strategy": None if epochs else run.stopping_strategy,
    }
    return mixture.source, document, record


def write_rows(run: Any, corpora: list[Corpus], tokens: list, splits: list[dict], vocab_size: int, out: Path):
    """Each split's rows as files; returns what the manifest says of them, and the tokens of each document."""
    records, lengths, mixture = {}, {}, None
    for name in split_names(splits):
        source, document, made = order(run, corpora, [of_corpus.lengths for of_corpus in tokens], splits, name)
        mixture = made or mixture
        stream = Joined(tokens, source, document)
        lengths[name] = np.diff(stream.ends, prepend=0)
        progress, facts = shown(f"Writing {name}"), {}
        if run.pack or run.pad:
            how = {"max_length": run.max_length, "pack": run.pack}
            parts, padding, cut = write_documents(stream, out / name, vocab_size, progress, **how)
            facts = {"padding_share": padding, "cut_share": cut} if run.pack else {"cut_share": cut}
        else:
            require_full_window(stream, run.max_length, name)
            # The training windows may overlap; held-out tokens are asked once.
            how = {"stride": run.stride, "overlap": run.overlap, "drop_tail": run.drop_tail} if name == "train" else {}
            parts = write_windows(stream, out / name, vocab_size, progress, max_length=run.max_length, **how)
        records[name] = {
            "documents": len(document),
            "bytes": sum(int(tokens[n].bytes[document[source == n]].sum()) for n in range(len(tokens))),
            "rows": sum(part.rows for part in parts),
            "tokens": len(stream),
            "asked": sum(part.asked for part in parts),
            **facts,
            "sha256": hash_of([part.sha256 for part in parts]),
        }
    return records, mixture, lengths


def write_cleaned(run: Any, corpora: list[Corpus], tables: list[list], splits: list[dict], out: Path):
    """Each split's cleaned rows as files; returns what the manifest says, and the bytes of each row."""
    records, lengths, mixture = {}, {}, None
    sizes = [np.concatenate([sizes_of_texts(table) for table in of_corpus]) for of_corpus in tables]
    for name in split_names(splits):
        source, document, made = order(run, corpora, sizes, splits, name)  # without a tokenizer shares are of bytes
        mixture = made or mixture
        parts = write_texts(tables, source, document, out / name, shown(f"Writing {name}"))
        lengths[name] = np.concatenate([sizes[n][document[source == n]] for n in range(len(tables))])
        records[name] = {
            "documents": len(document),
            "bytes": sum(int(sizes[n][document[source == n]].sum()) for n in range(len(tables))),
            "rows": sum(rows for rows, _ in parts),
            "sha256": hash_of([content for _, content in parts]),
        }
    return records, mixture, lengths


def split_names(splits: list[dict]) -> list[str]:
    """The splits that some corpus has, in their order."""
    return [name for name in ("train", "validation", "test") if any(name in of_corpus for of_corpus in splits)]


# --- All of it ---------------------------------------------------------------------------------------------------


def prepare(run: Any, corpora: list[Corpus], plan: str, work: Path) -> dict[str, Any]:
    """Go through the stages and leave a whole folder; returns its manifest."""
    filters = make_filters(run)
    tables = clean(run, corpora, filters, work)
    flat = [table for of_corpus in tables for table in of_corpus]
    selection = Selection(flat, filters)
    remove_duplicates(run, flat, selection)
    flat = cut_passages(run, flat, selection, work)
    rest = iter(flat)
    tables = [[next(rest) for _ in of_corpus] for of_corpus in tables]
    splits = split(run, corpora, [sum(map(len, of_corpus)) for of_corpus in tables], selection)

    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    list_unusual(run, tables, splits, selection, out)
    how: dict[str, Any] = {"plan": plan}
    if run.task == "text":
        records, mixture, lengths = write_cleaned(run, corpora, tables, splits, out)
    else:
        tokenizer = choose_tokenizer(run, tables, splits, work)
        tokens = encode(corpora, tables, selection, tokenizer, work)
        records, mixture, lengths = write_rows(run, corpora, tokens, splits, count_ids(tokenizer), out)
        tokenizer.save_pretrained(out / "tokenizer")
        how["tokenizer"] = {"fingerprint": fingerprint(tokenizer), "vocab_size": count_ids(tokenizer)}
        how |= {"max_length": run.max_length, "stride": run.stride or run.max_length, "pack": run.pack, "pad": run.pad}
    if run.write_removed:
        write_removed(flat, selection, out / "removed.jsonl")
    files = [file_record(path, path.relative_to(out).as_posix()) for path in sorted(out.rglob("*")) if path.is_file()]
    sources = [corpus.record for corpus in corpora]
    manifest = make_manifest(run.task, sources, records, selection.counts, mixture, files, **how)
    if run.report:
        write_report(manifest, flat, selection, lengths, out)

    folder = Path(run.output_dir)
    (folder / NAME).unlink(missing_ok=True)  # from here until it is written again nothing is prepared
    for path in out.iterdir():
        old = folder / path.name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        path.replace(old)
    write_text(folder / NAME, json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(work)
    return manifest


def removed_rows(tables: list, selection) -> Iterator[dict[str, Any]]:
    """Every removed row with what removed it and why."""
    start = 0
    for table in tables:
        for n in (selection.by[start : start + len(table)] >= 0).nonzero()[0].tolist():
            row = table.slice(n, 1).to_pylist()[0]
            own = {name: value for name, value in row.items() if name not in MARKS}
            yield {"filter": selection.names[selection.by[start + n]], "why": row["_why"], "row": own}
        start += len(table)


def write_removed(tables: list, selection, path: Path) -> None:
    """removed.jsonl: a line for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for line in removed_rows(tables, selection):
            lines.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


def write_report(manifest: dict[str, Any], tables: list, selection, lengths: dict, out: Path) -> None:
    """report.html: the page of these data, with the first removed rows, and the fullest packed row in colours."""
    examples: dict[str, list[tuple[str, str]]] = {name: [] for name in selection.names}
    for line in removed_rows(tables, selection):
        if len(examples[line["filter"]]) < EXAMPLES:
            examples[line["filter"]].append((line["why"] or "", "\n".join(texts_of(line["row"]))[:500]))
    row = pieces = None
    if manifest["task"] == "pretrain":
        rows = PreparedRows(out / "train")
        some = [rows[k] for k in range(min(len(rows), 200))]
        row = max(some, key=lambda row: (row["position_ids"] == 0).sum()) if "position_ids" in some[0] else some[0]
        tokenizer = load_tokenizer(out / "tokenizer")
        pieces = [decode(tokenizer, [id]) for id in row["input_ids"].tolist()]
    write_text(out / "report.html", report_page(manifest, lengths=lengths, examples=examples, row=row, pieces=pieces))
