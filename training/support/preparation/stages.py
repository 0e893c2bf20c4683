"""Run the stages of a preparation and manage its output folder. Not a recipe itself."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from scratch_gpt.data.filters.duplicates import (
    SeenPassages,
    contaminated_share,
    exact_key,
    near_duplicates,
    ngram_hashes,
    signatures,
)
from scratch_gpt.data.filters.gutenberg import strip_gutenberg
from scratch_gpt.data.filters.person_names import names_finder
from scratch_gpt.data.filters.privacy import mask_private
from scratch_gpt.data.filters.quality import QualityRules, blocked_term, load_block_list, quality_problems
from scratch_gpt.data.manifest import (
    MANIFEST_FILE,
    changed_file,
    file_record,
    make_manifest,
    manifest_text,
    place,
    read_manifest,
    verify_files,
)
from scratch_gpt.data.prepared.pipeline import (
    Filter,
    Selection,
    binary_column,
    change_part,
    clean_part,
    first_of_its_kind,
    in_parts,
    part_bounds,
    texts_of,
    write_removed,
)
from scratch_gpt.data.prepared.writing import shared_schema
from scratch_gpt.data.sources.documents import is_text, open_column, open_rows
from scratch_gpt.data.sources.location import Location
from scratch_gpt.data.splits import check_fractions, split_numbers, split_texts
from scratch_gpt.tokenization.tokenizer import count_ids, load_tokenizer, tokenizer_facts
from scratch_gpt.utils.files import remove, remove_empty, write_text
from scratch_gpt.utils.foreign import read_foreign_text, read_json, shown
from scratch_gpt.utils.wording import plural
from scratch_gpt_training.support.command_line import parse_numbers
from scratch_gpt_training.support.options import dataset_location, find_corpus
from scratch_gpt_training.support.preparation.outputs import (
    encode_corpora,
    list_unusual,
    make_encoder,
    progress_bar,
    train_on_splits,
    write_cleaned,
    write_report,
    write_splits,
)
from scratch_gpt_training.support.run.output_dir import check_read_paths, check_writable, is_filled


if TYPE_CHECKING:
    from scratch_gpt_training.prepare import PrepareRun


PARTS_FORMAT = 3  # version of the stored parts; an interrupted run with another version starts again
OURS = {"train", "validation", "test", "tokenizer", "flagged.jsonl", "removed.jsonl"}  # names of our output files


class OpenCorpus(NamedTuple):
    """An opened source."""

    name: str  # as the user gave it; `record` contains the name for the manifest
    rows: Any  # datasets.Dataset
    record: dict[str, Any]
    weight: float | None


# --- The folder --------------------------------------------------------------------------------------------------


def open_output_folder(run: "PrepareRun", plan: str, sources: list[dict[str, Any]]) -> tuple[Path, bool]:
    """Return the folder for intermediate files, and whether this preparation is already complete.

    Raises:
        ValueError: --output-dir may not be used.
    """
    folder = Path(run.output_dir)
    work = folder / ".work"
    check_writable(folder)
    plan_file = work / "plan.txt"
    is_ours = "plan" in _read_old(folder)
    if is_filled(folder) and not is_ours and not plan_file.is_file():
        raise ValueError(f"--output-dir {run.output_dir} exists but is not a folder of prepared data. Choose another.")
    if run.overwrite:
        check_read_paths(run)
    if is_ours and not run.overwrite:
        manifest = read_manifest(folder)
        if manifest.get("plan") != plan:
            changed = changed_file(manifest["sources"], sources) or "the settings differ"
            raise ValueError(
                f"--output-dir {run.output_dir} contains another preparation: {changed}. Replace it with --overwrite "
                "true, or choose another --output-dir."
            )
        verify_files(folder, manifest)
        for is_needed, name in ((run.report, "report.html"), (run.write_removed, "removed.jsonl")):
            if is_needed and not (folder / name).exists():
                raise ValueError(
                    f"The data in {run.output_dir} are already prepared, but without {name}, which is only written "
                    "during a preparation. Prepare them again with --overwrite true."
                )
        return work, True
    if plan_file.exists() and read_foreign_text(plan_file) != plan:
        if not run.overwrite:
            raise ValueError(
                f"--output-dir {run.output_dir} contains an unfinished preparation of other data or settings. Delete "
                "it with --overwrite true, or choose another --output-dir."
            )
        remove(work)
    if plan_file.exists():
        print(f"Resuming the preparation in {run.output_dir}.")
    work.mkdir(parents=True, exist_ok=True)
    write_text(plan_file, plan)
    return work, False


def hash_plan(run: "PrepareRun", sources: list[dict[str, Any]]) -> str:
    """Return a hash of everything that determines the rows: sources, settings and the files that they name."""
    this_call = ("output_dir", "overwrite", "write_removed", "report", "hang_timeout", "encoder")
    config = {name: value for name, value in asdict(run).items() if name not in this_call}
    if run.contamination:
        config["contamination"] = open_rows(Location(run.contamination, split=run.contamination_split)).record
    for name, older in (("pre_tokenizer", "gpt2"), ("strip", "off")):  # plans of older versions do not name them
        if config[name] == older:
            del config[name]
    for name in ("tokenizer", "reference_model", "names_model", "block_list"):
        path = Path(config[name]) if config[name] else None
        if path is not None and path.exists():  # hash the content: the location does not matter
            files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
            config[name] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    content = json.dumps([PARTS_FORMAT, config, sources], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


# --- The stages --------------------------------------------------------------------------------------------------


def open_corpora(run: "PrepareRun") -> list[OpenCorpus]:
    """Open each source; raise a ValueError if one cannot be opened or lacks the column."""
    mixture = {run.dataset: None} if run.mixture is None else parse_numbers(run.mixture, "mixture")
    corpora = []
    for (name, weight), recorded in zip(mixture.items(), _distinct(map(place, mixture)), strict=True):
        dataset = find_corpus(run, name) if run.mixture else name
        where = dataset_location(run, dataset)
        source = open_rows(where) if run.task == "text" else open_column(where, run.text_column)
        rows = source.rows
        for notice in source.notices:
            print(shown(notice))
        if run.deduplicate_passages is not None and _text_column(run, rows) is None:
            raise ValueError(
                f"--deduplicate-passages cuts the column {run.text_column!r}, but {name} has no such text, only "
                f"{', '.join(rows.column_names)}: rows of messages, instructions or preferences cannot be cut. "
                "Choose another column with --text-column, or remove --deduplicate-passages."
            )
        record = {"name": recorded, **source.record, "rows": len(rows)}
        corpora.append(OpenCorpus(name, rows, record, weight))
    if run.task == "text":
        shared_schema([corpus.rows.features.arrow_schema for corpus in corpora])  # raise before the long stages
    return corpora


def _distinct(names: Iterable[str]) -> list[str]:
    # Number equal names of corpora from different folders: books, books (2).
    unique: list[str] = []
    for name in names:
        numbered = (f"{name} ({n})" for n in count(2))
        unique.append(next(candidate for candidate in chain([name], numbered) if candidate not in unique))
    return unique


def _column_name(run: "PrepareRun") -> str:
    # open_column renames the text column to "text".
    return "text" if run.task == "pretrain" else run.text_column


def _text_column(run: "PrepareRun", rows: Any) -> str | None:
    # Return the column with the text of these rows; None for rows of messages, instructions or preferences.
    name = _column_name(run)
    return name if is_text(rows.features.get(name)) else None


def load_named_tokenizer(run: "PrepareRun"):
    """Load the tokenizer given by --tokenizer; return None if no tokenizer is needed or one is to be trained."""
    if run.task == "text" or run.tokenizer in (None, "train"):
        return None
    return load_tokenizer(run.tokenizer, run.tokenizer_revision)


def make_filters(run: "PrepareRun") -> list:
    """Return the filters of the rows, in order."""
    filters = [] if run.strip == "off" else [Filter(run.strip, change=strip_gutenberg)]
    filters.append(Filter("empty", problems=partial(map, _no_text)))
    if run.quality or run.languages:
        languages = tuple(code.strip().lower() for code in (run.languages or "").split(",") if code.strip())
        no_rules = dict.fromkeys((item.name for item in fields(QualityRules)), None)
        rules = QualityRules(**{**({} if run.quality else no_rules), "languages": languages})
        name = "quality" if run.quality else "languages"
        filters.append(Filter(name, problems=partial(quality_problems, rules=rules)))
    if run.block_list:
        patterns = load_block_list(run.block_list)
        filters.append(Filter("block_list", problems=partial(map, partial(blocked_term, patterns=patterns))))
    if run.contamination:
        rows = open_rows(Location(run.contamination, split=run.contamination_split)).rows
        texts = ["\n".join(texts_of(row)) for row in rows]
        hashes = ngram_hashes(texts, n=run.contamination_ngram)

        def contaminated(text: str) -> str | None:
            share = contaminated_share(text, hashes, n=run.contamination_ngram)
            return f"{share:.0%} of its n-grams" if share > run.contamination_share else None

        filters.append(Filter("contamination", problems=partial(map, contaminated)))
    mask = partial(mask_private, find_names=None if run.names_model is None else names_finder(run.names_model))
    if run.privacy_kinds is not None:
        mask = partial(mask, kinds=[kind.strip() for kind in run.privacy_kinds.split(",")])
    if run.privacy == "drop":

        def found_kinds(text: str) -> str | None:
            return ", ".join(kind for kind, count in mask(text)[1].items() if count) or None

        filters.append(Filter("privacy", problems=partial(map, found_kinds)))
    if run.privacy == "mask":
        filters.append(Filter("privacy", change=lambda text: mask(text)[0]))
    return filters


def _no_text(text: str) -> str | None:
    return None if text and not text.isspace() else "no text"


def clean(run: "PrepareRun", corpora: list[OpenCorpus], filters: list, work: Path) -> list[list]:
    """Apply the filters to the corpora; return the tables of each, with removed rows marked."""
    sign = partial(signatures, ngram=run.duplicate_ngram) if run.deduplicate == "near" else None
    key = exact_key if run.deduplicate != "off" else None
    tables = []
    for n, corpus in enumerate(corpora):
        features, column = corpus.rows.features, _text_column(run, corpus.rows)
        table = corpus.rows.with_format("arrow")[:].replace_schema_metadata(features.arrow_schema.metadata)
        bounds = part_bounds(table)
        make = partial(_clean_table, table, bounds, filters, key, sign, column)
        tables.append(in_parts(work / f"clean-{n}", len(bounds) - 1, make, progress_bar(f"Cleaning {corpus.name}")))
    return tables


def _clean_table(table: pa.Table, bounds: Any, filters: list, key: Any, sign: Any, column: str | None, k: int) -> Any:
    return clean_part(table.slice(bounds[k], bounds[k + 1] - bounds[k]), filters, key, sign, column)


def remove_duplicates(run: "PrepareRun", tables: list, selection) -> None:
    """Mark duplicate rows as removed; of near-duplicates the first row of each cluster stays."""
    if run.deduplicate == "off":
        return
    keys = np.concatenate([*binary_column(tables, "_key", np.uint8)])
    selection.remove_copies("exact_duplicates", first_of_its_kind(keys, selection.alive))
    if run.deduplicate == "near":
        alive = np.flatnonzero(selection.alive)
        signatures_of_rows = np.concatenate([*binary_column(tables, "_signature", np.uint32)])[alive]
        first = np.arange(len(selection.by))
        first[alive] = alive[near_duplicates(signatures_of_rows, threshold=run.duplicate_threshold)]
        selection.remove_copies("near_duplicates", first)


def cut_passages(run: "PrepareRun", tables: list, selection, work: Path) -> list:
    """Cut passages that occurred earlier; return the tables, and mark rows without remaining text as removed."""
    if run.deduplicate_passages is None:
        return tables
    passages, column = SeenPassages(length=run.deduplicate_passages), _column_name(run)
    starts = np.cumsum([0, *map(len, tables)])

    def make(k: int):
        alive = selection.alive[starts[k] : starts[k + 1]]
        return change_part(tables[k], alive, column, lambda texts: (text for text, _ in passages.remove_all(texts)))

    remove(work / "passages")  # the seen passages are not stored, so all parts must be made again
    shortened = in_parts(work / "passages", len(tables), make, progress_bar("Cutting passages"))
    emptied = np.concatenate([table.column("_emptied").to_numpy() for table in shortened])
    changed = np.concatenate([table.column("_shortened").to_numpy() for table in shortened])
    selection.remove("passages", emptied)
    selection.counts["passages"]["changed"] = int(changed.sum())
    return shortened


def _reasons(tables: list) -> str:
    # Example: "quality removed 200, empty removed 3 (mostly too_short 198, no text 3, symbols 2)".
    removed = Counter(name for table in tables for name in table.column("_removed").to_pylist() if name)
    counts = Counter(reason for table in tables for reason in table.column("_why").to_pylist() if reason)
    reasons = ", ".join(f"{reason[:40]} {count}" for reason, count in counts.most_common(3))
    return ", ".join(f"{name} removed {count}" for name, count in removed.most_common()) + f" (mostly {reasons})"


def split(
    run: "PrepareRun", corpora: list[OpenCorpus], tables: list[list], selection
) -> tuple[list[list], list[dict]]:
    """Split each corpus; return its tables and the row numbers of {"train", "validation", "test"}.

    Rows that have only text are cut if splits of complete rows would miss the shares; the pieces are appended as
    another table.
    """
    fractions = (run.validation_fraction, run.test_fraction)
    check_fractions(*fractions)
    pieced, numbers_of, start = [], [], 0
    for corpus, of_corpus in zip(corpora, tables, strict=True):
        size = sum(map(len, of_corpus))
        alive = np.flatnonzero(selection.alive[start : start + size])
        start += size
        if len(alive) == 0:
            raise ValueError(f"The filters removed every row of {corpus.name}: {_reasons(of_corpus)}.")
        pieces: list[tuple[int, str]] = []
        try:
            if corpus.rows.column_names == [_column_name(run)]:
                texts = pa.chunked_array([chunk for t in of_corpus for chunk in t.column(_column_name(run)).chunks])
                sizes = np.concatenate([table.column("_bytes").to_numpy() for table in of_corpus])[alive]
                text_of = partial(_text_at, texts, alive)
                numbers, pieces = split_texts(sizes, text_of, *fractions, run.seed)
            else:
                numbers = split_numbers(len(alive), *fractions, run.seed)
        except ValueError:
            if len(corpora) == 1:
                raise
            print(
                f"{corpus.name} has {plural(len(alive), 'document')}, too few to hold some out: all are used for "
                "training."
            )
            numbers = {"train": np.arange(len(alive))}
        if pieces:
            of_corpus = [*of_corpus, _as_table(of_corpus, [(alive[n], text) for n, text in pieces], _column_name(run))]
        row_numbers = np.concatenate([alive, size + np.arange(len(pieces))])
        pieced.append(of_corpus)
        numbers_of.append({name: row_numbers[part] for name, part in numbers.items()})
    return pieced, numbers_of


def _text_at(texts: pa.ChunkedArray, alive: np.ndarray, n: int) -> str:
    return texts[int(alive[n])].as_py()


def _as_table(tables: list, pieces: list[tuple[int, str]], column: str) -> pa.Table:
    # Return pieces of rows as rows: copies of the original rows with the text of the piece.
    table, texts = pa.concat_tables(tables), [text for _, text in pieces]
    columns = {column: texts, "_bytes": [len(text.encode()) for text in texts]}
    numbers = pa.array([number for number, _ in pieces])
    return pa.table(
        [
            pa.array(columns[field.name], field.type)
            if field.name in columns
            else table.column(field.name).take(numbers)
            for field in table.schema
        ],
        schema=table.schema,
    )


def shares_of(tables: list[list], splits: list[dict]) -> dict[str, float]:
    """Return each split's share of all bytes, before a mixture repeats rows."""
    sizes: Counter = Counter()
    for of_corpus, of_splits in zip(tables, splits, strict=True):
        sizes_of_rows = np.concatenate([table.column("_bytes").to_numpy() for table in of_corpus])
        sizes.update({name: int(sizes_of_rows[part].sum()) for name, part in of_splits.items()})
    return {name: size / max(1, sizes.total()) for name, size in sizes.items()}


# --- Preparation -------------------------------------------------------------------------------------------------


def prepare(
    run: "PrepareRun", corpora: list[OpenCorpus], filters: list, tokenizer, plan: str, work: Path
) -> dict[str, Any]:
    """Run all stages, write the prepared folder, and return its manifest.

    Raises:
        ValueError: these data cannot be prepared with these settings; partial output is deleted.
    """
    try:
        return _prepare(run, corpora, filters, tokenizer, plan, work)
    except ValueError:
        remove(work)
        raise


def _prepare(
    run: "PrepareRun", corpora: list[OpenCorpus], filters: list, tokenizer, plan: str, work: Path
) -> dict[str, Any]:
    tables = clean(run, corpora, filters, work)
    flat = [table for of_corpus in tables for table in of_corpus]
    selection = Selection(flat, filters)
    remove_duplicates(run, flat, selection)
    shortened = iter(cut_passages(run, flat, selection, work))
    tables = [[next(shortened) for _ in of_corpus] for of_corpus in tables]
    tables, splits = split(run, corpora, tables, selection)

    out = work / "out"
    remove(out)
    list_unusual(run, tables, splits, selection, out)
    details: dict[str, Any] = {"plan": plan}
    if run.task == "text":
        records, mixture, lengths = write_cleaned(run, corpora, tables, splits, out)
    else:
        tokenizer = tokenizer or train_on_splits(run, tables, splits, work)
        encoder = make_encoder(run, tables, tokenizer)
        tokens, encoder_record = encode_corpora(corpora, tables, splits, tokenizer, encoder, work)
        records, mixture, lengths = write_splits(run, corpora, tokens, splits, count_ids(tokenizer), out)
        tokenizer.save_pretrained(out / "tokenizer")
        details |= {"tokenizer": tokenizer_facts(tokenizer), "encoder": encoder_record}
        details |= {
            "max_length": run.max_length,
            "stride": run.stride or run.max_length,
            "pack": run.pack,
            "pad": run.pad,
        }
    for name, share in shares_of(tables, splits).items():
        records[name]["share"] = share
    if run.write_removed:
        write_removed(corpora, flat, selection, out / "removed.jsonl")
    files = [file_record(path, path.relative_to(out).as_posix()) for path in sorted(out.rglob("*")) if path.is_file()]
    sources = [corpus.record for corpus in corpora]
    manifest = make_manifest(run.task, sources, records, selection.counts, mixture, files, **details)
    if run.report:
        write_report(manifest, corpora, flat, selection, lengths, out)

    folder = Path(run.output_dir)
    remove_old(folder)  # until the new manifest is written, the folder does not count as prepared
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        target = folder / path.relative_to(out)
        if target.parent.is_symlink():
            remove(target.parent)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
    write_text(folder / MANIFEST_FILE, manifest_text(manifest))
    remove(work)
    return manifest


def remove_old(folder: Path) -> None:
    """Remove the files that a preparation's manifest lists, its report and the manifest; keep all other files."""
    manifest = _read_old(folder)
    if "plan" not in manifest:
        return
    names = [Path(file["name"]) for file in manifest.get("files", [])]
    listed = [name for name in names if {*name.parts[:1]} & OURS and ".." not in name.parts]
    tops = {folder / name.parts[0] for name in listed if len(name.parts) > 1}
    for top in tops:
        if top.is_symlink():
            remove(top)
    for name in [*listed, Path("report.html"), Path(MANIFEST_FILE)]:
        remove(folder / name)
    for top in tops:
        remove_empty(top)


def _read_old(folder: Path) -> dict[str, Any]:
    # Return the manifest of a preparation, also of an older version, or {} if it is missing or invalid.
    try:
        manifest = read_json(folder / MANIFEST_FILE)
        _ = [Path(file["name"]) for file in manifest.get("files", [])]
        return manifest if {"plan", "sources", "splits"} <= manifest.keys() else {}
    except (ValueError, KeyError, TypeError):
        return {}
