# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Prepare text: clean, deduplicate, mix and tokenize it, and write rows that training maps from disk.

    python training/prepare.py [--config FILE.yaml] [--field value ...]

    python training/prepare.py --dataset "notes/*.md" --tokenizer openai-community/gpt2 --pack true --deduplicate near
    python training/prepare.py --mixture "books/=3,web.jsonl=1" --privacy mask --output-dir data/mixed

Without arguments: the documentation of the Python that runs this, with a tokenizer trained on it. pretrain.py takes
the folder as its --dataset; any recipe for such rows takes the folder of --task text. Writes output_dir/train (and
validation, test), tokenizer/ and manifest.json. The same command resumes an interrupted run; if the run is complete,
it prints a message.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scratch_gpt_training.support.command_line import flag, one_clear_line, parse, parse_numbers
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.options import (
    ENCODER_HELP,
    PRE_TOKENIZER,
    PRE_TOKENIZER_HELP,
    VOCABULARY,
    SourceOptions,
    check_encoder,
    check_fields,
    check_model_folder,
    check_rows,
    find_corpus,
    missed_shares,
    option,
    unused_source,
    vocabulary_size,
)
from scratch_gpt_training.support.run.output_dir import check_writable


@dataclass(frozen=True)
class PrepareRun(SourceOptions):
    """Preparation."""

    COMMON = (
        "output_dir",
        "overwrite",
        "task",
        "mixture",
        "tokenizer",
        "max_length",
        "pack",
        "deduplicate",
        "quality",
        "privacy",
        "report",
    )

    output_dir: str = option("data/prepared", "Folder to write; one that holds anything else is refused.")
    overwrite: bool = option(False, "Replace an earlier preparation in --output-dir.")
    task: Literal["pretrain", "text"] = option(
        "pretrain", "pretrain writes rows of tokens; text writes the cleaned rows."
    )

    text_column: str = option(
        "text", "Column that holds the text; --task text keeps all columns and compares this one for duplicates."
    )
    validation_fraction: float = option(0.1, "Fraction of the text that is held out for validation.")
    test_fraction: float = option(0.0, "Fraction of the text that is held out for a test at the end.")
    seed: int = option(0, "Seed of splits, mixture order and the sample for a tokenizer.")

    mixture: str | None = option(None, "Several corpora: `name=weight,...`, or `name,...` (see --alpha).")
    alpha: float = option(0.7, "Without weights, a corpus gets its share of all tokens to this power, normalized.")
    mixture_epochs: str | None = option(None, "Passes over each corpus, instead of weights: `name=2,...`.")
    stopping_strategy: Literal["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"] = option(
        "all_exhausted", "End of the mixture, as in datasets.interleave_datasets; by default small corpora repeat."
    )

    tokenizer: str | None = option(None, "Folder or Hub id; by default a tokenizer is trained on the text.")
    tokenizer_revision: str | None = option(None, "Branch, tag or commit of a Hub tokenizer.")
    vocab_size: int | None = option(None, f"Vocabulary size of a newly trained tokenizer; by default {VOCABULARY}.")
    pre_tokenizer: Literal["gpt2", "qwen35"] = option(PRE_TOKENIZER, PRE_TOKENIZER_HELP)
    encoder: Literal["auto", "tokenizers", "gigatoken"] = option("auto", ENCODER_HELP)
    max_length: int = option(256, "Tokens per row.")
    stride: int | None = option(
        None, "Tokens between the starts of two windows; by default --max-length (no overlap)."
    )
    overlap: Literal["ask", "context"] = option(
        "ask", "With overlapping windows: train on shared tokens again (ask), or use them as context only (context)."
    )
    drop_tail: bool = option(False, "Drop a split's last window if it is not full.")
    pack: bool = option(False, "Pack several whole documents into each row; they do not attend to each other.")
    pad: bool = option(False, "Use one document per row, padded in the batch.")

    strip: Literal["off", "gutenberg"] = option(
        "off", "gutenberg: strip the header, license and credits that Project Gutenberg puts around a book."
    )
    deduplicate: Literal["off", "exact", "near"] = option(
        "off",
        "Remove exact or near duplicates, by the text column, else by the columns that recipes learn "
        "from (messages, instruction, prompt, ...).",
    )
    duplicate_ngram: int = option(5, "Words per n-gram for near duplicates: 5 for documents, 1 for short rows.")
    duplicate_threshold: float = option(0.8, "Share of common n-grams from which two rows are near duplicates.")
    deduplicate_passages: int | None = option(
        None,
        "Cut repeated passages of N words (such as 128) from the text column.",
    )
    quality: bool = option(False, "Remove documents that are too short, repeat themselves or hold few words.")
    languages: str | None = option(None, "Keep only these languages: `en,de` (needs the extra languages).")
    privacy: Literal["off", "mask", "drop"] = option(
        "off", "Mask e-mail and IP addresses, phone numbers and keys, or drop rows with them."
    )
    privacy_kinds: str | None = option(
        None, "Kinds of private data: `key,email,ip,phone` (the default), `card`, `iban`, `ssn` (US social security)."
    )
    names_model: str | None = option(None, "Token-classification model that finds people's names, to mask or drop.")
    block_list: str | None = option(
        None, "File of words or /patterns/, one per line; documents with one of them are removed."
    )
    contamination: str | None = option(
        None, "Evaluation data (as --dataset); documents that share text with it are removed."
    )
    contamination_split: str = option("train", "Split of the evaluation data, for a Hub dataset or a prepared folder.")
    contamination_ngram: int = option(13, "Words per n-gram for contamination.")
    contamination_share: float = option(0.0, "Share of common n-grams above which a document is removed.")
    reference_model: str | None = option(None, "Small model; rows that it finds unlikely (mean + 3 sigma) are listed.")
    poisoning: bool = option(False, "List the 5 % of rows with the lowest gradient scores in --reference-model.")
    write_removed: bool = option(False, "Write removed rows with the reason to removed.jsonl.")
    hang_timeout: float = option(30.0, "Stop after N minutes without progress; 0 never stops.")
    report: bool = option(
        False, "Write report.html: a summary of the data, the removed rows and one example in color."
    )


OF_CONTAMINATION = ("contamination_split", "contamination_ngram", "contamination_share")
OF_TOKENS = ("vocab_size", "pre_tokenizer", "tokenizer_revision", "encoder", "max_length", "overlap", "drop_tail")


def check(run: PrepareRun) -> None:
    """Raise a ValueError for the first invalid field."""
    check_fields(run)
    for name in ("duplicate_threshold", "contamination_share"):
        if not 0 <= getattr(run, name) <= 1:
            raise ValueError(f"{flag(name)} must be between 0 and 1 (you gave {getattr(run, name)}).")
    if not 0 < run.alpha <= 1:
        raise ValueError(f"--alpha must be above 0 and at most 1 (you gave {run.alpha}).")
    check_rows(run)
    check_encoder(run.encoder)
    if run.poisoning and run.reference_model is None:
        raise ValueError("--poisoning compares the gradients of a model. Give the model with --reference-model.")
    check_model_folder(run.reference_model, "reference-model")
    if run.privacy_kinds is not None:
        from scratch_gpt.data.filters.privacy import ALL_KINDS

        unknown = {kind.strip() for kind in run.privacy_kinds.split(",")} - {*ALL_KINDS}
        if run.privacy == "off" or unknown:
            raise ValueError(
                f"--privacy-kinds {run.privacy_kinds}: give some of {','.join(ALL_KINDS)}, separated by commas, and "
                "--privacy mask or --privacy drop."
            )
    if run.names_model is not None and run.privacy == "off":
        raise ValueError("--names-model only works with --privacy mask or --privacy drop. Add one of them.")
    check_model_folder(run.names_model, "names-model")
    if run.task == "text" and (run.pack or run.pad or run.stride is not None or run.tokenizer is not None):
        raise ValueError("--task text writes text, not tokens. Remove --tokenizer, --pack, --pad and --stride.")
    if run.mixture is not None:
        weights = parse_numbers(run.mixture, "mixture")
        if len({weight is None for weight in weights.values()}) > 1:
            raise ValueError(
                f"--mixture {run.mixture}: give weights for all corpora, or for none (then --alpha sets the shares)."
            )
        if run.mixture_epochs is not None and None not in weights.values():
            raise ValueError("--mixture with weights and --mixture-epochs exclude each other. Remove one of them.")
    if run.mixture_epochs is not None:
        epochs = parse_numbers(run.mixture_epochs, "mixture_epochs")
        if run.mixture is None or set(epochs) != set(parse_numbers(run.mixture, "mixture")) or None in epochs.values():
            raise ValueError("--mixture-epochs needs a number for every corpus of --mixture: name=2,name=1.")


def unused_fields(run: PrepareRun) -> dict[str, str]:
    """Return the fields that have no effect in this run, with the reason."""
    weights = {} if run.mixture is None else parse_numbers(run.mixture, "mixture")
    unread = unused_source(*([run.dataset] if run.mixture is None else (find_corpus(run, name) for name in weights)))
    exam = unused_source(run.contamination).get("dataset_split")
    groups = (  # of several reasons the last one counts
        (("alpha",), None in weights.values(), "--mixture gives the weights"),
        (("stopping_strategy", "alpha"), run.mixture_epochs is None, "--mixture-epochs gives the shares"),
        (("mixture_epochs", "stopping_strategy", "alpha"), run.mixture is not None, "it needs --mixture"),
        (("duplicate_ngram", "duplicate_threshold"), run.deduplicate == "near", "it needs --deduplicate near"),
        (("contamination_split",), exam is None, exam or ""),
        (OF_CONTAMINATION, run.contamination is not None, "it needs --contamination"),
        (("overlap",), (run.stride or run.max_length) < run.max_length, "it needs a --stride below --max-length"),
        (("tokenizer_revision",), run.tokenizer not in (None, "train"), "it needs --tokenizer"),
        (("vocab_size", "pre_tokenizer"), run.tokenizer in (None, "train"), f"{run.tokenizer}'s tokenizer is used"),
        (OF_TOKENS, run.task == "pretrain", "--task text writes text"),
    )
    for names, is_read, reason in groups:
        unread |= {} if is_read else dict.fromkeys(names, reason)
    return unread


def describe(run: PrepareRun, manifest: dict[str, Any]) -> str:
    """Return a summary of the prepared data and the next command."""

    from scratch_gpt.utils.wording import plural

    lines = []
    if run.task == "pretrain" and run.tokenizer is None and manifest["tokenizer"]["vocab_size"] < run.vocab_size:
        size = manifest["tokenizer"]["vocab_size"]
        lines.append(f"Vocabulary: {size:,} tokens instead of {run.vocab_size:,}: the text yields no more.")
    for name, counts in manifest["filters"].items():
        details = "".join(f", {counts[key]:,} {key}" for key in ("changed", "flagged") if key in counts)
        lines.append(f"{name:>18}: {plural(counts['in'], 'row')} in, {counts['removed']:,} removed{details}")
    for name, facts in manifest["splits"].items():
        tokens = f", {facts['tokens']:,} tokens in {plural(facts['rows'], 'row')}" if "tokens" in facts else ""
        shares = [f"{facts['padding_share']:.1%} padding"] if "padding_share" in facts else []
        shares += (
            [f"{facts['cut_share']:.1%} of the tokens in documents longer than one row"]
            if "cut_share" in facts
            else []
        )
        lines.append(
            f"{name:>18}: {plural(facts['documents'], 'document')}, {facts['bytes']:,} bytes, "
            f"{100 * facts['share']:.1f} % of the text{tokens}{' (' + ', '.join(shares) + ')' if shares else ''}"
        )
    lines += missed_shares(run, {name: facts["share"] for name, facts in manifest["splits"].items()}, "text")
    if run.stride is not None and run.stride > run.max_length:
        lines.append(
            f"--stride {run.stride} is above --max-length {run.max_length}: {run.stride - run.max_length} tokens "
            "between two windows are skipped."
        )
    mixture = manifest["mixture"] or {"actual": {}}
    for name, share in mixture["actual"].items():
        lines.append(f"{name:>18}: {share:.1%} of the training mixture, {mixture['epochs'][name]:.2f} epochs")
    report = f"; report: {run.output_dir}/report.html" if run.report else ""
    lines.append(f"Written: {run.output_dir}; contents: {run.output_dir}/manifest.json{report}. Next:")
    recipe = command("pretrain") if run.task == "pretrain" else "any recipe for such rows, with"
    lines.append(f"  {recipe} --dataset {run.output_dir}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    resume_hint = "The same command resumes after the parts that are complete."
    with one_clear_line(stopped=resume_hint):
        run = parse(PrepareRun, argv, unused=unused_fields)
        check(run)
        run = replace(run, vocab_size=vocabulary_size(run))

        from scratch_gpt.utils.foreign import shown
        from scratch_gpt.utils.locks import hold
        from scratch_gpt.utils.watchdog import watch
        from scratch_gpt_training.support.preparation.stages import (
            hash_plan,
            load_named_tokenizer,
            make_filters,
            open_corpora,
            open_output_folder,
            prepare,
        )

        corpora, filters, tokenizer = open_corpora(run), make_filters(run), load_named_tokenizer(run)
        sources = [corpus.record for corpus in corpora]
        plan = hash_plan(run, sources)
        check_writable(Path(run.output_dir))
        with hold(run.output_dir):
            work, is_done = open_output_folder(run, plan, sources)
            if is_done:
                print(f"{run.output_dir} is already prepared from these sources with these settings.")
                return
            with watch(60 * run.hang_timeout, work / "stacks.txt", lambda: resume_hint):
                manifest = prepare(run, corpora, filters, tokenizer, plan, work)
    print(shown(describe(run, manifest)))


if __name__ == "__main__":
    main()
