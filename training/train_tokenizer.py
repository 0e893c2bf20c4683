# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Train a tokenizer that Hugging Face clients can load, and report its compression of held-out text.

    python training/train_tokenizer.py [--kind bpe] [--vocab-size 8192] [--dataset FILE] [--output-dir runs/tokenizer]

Without arguments: a byte-level BPE on the documentation of the Python that runs this. Writes the tokenizer's files and
report.json to output_dir, which the pretrain recipe takes as --tokenizer. --sample-megabytes limits memory for a text
of any size.
"""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from scratch_gpt_training.support.command_line import flag, name_flags, one_clear_line, parse
from scratch_gpt_training.support.commands import command
from scratch_gpt_training.support.options import (
    ENCODER_HELP,
    PRE_TOKENIZER,
    PRE_TOKENIZER_HELP,
    SourceOptions,
    check_encoder,
    check_range,
    dataset_location,
    option,
    unused_source,
)
from scratch_gpt_training.support.run.output_dir import check_read_paths, check_writable, is_filled, relative


TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "report.json"}  # files of a folder that we may replace
HELD_OUT_MEGABYTES = 8  # more held-out text would only take longer to measure


@dataclass(frozen=True)
class TokenizerRun(SourceOptions):
    """Tokenizer training."""

    COMMON = (
        "output_dir",
        "overwrite",
        "sample_megabytes",
        "kind",
        "vocab_size",
        "special_tokens",
        "chat_template",
        "compare",
    )

    output_dir: str = option(
        "runs/tokenizer", "Folder of the tokenizer; one that holds files is refused without --overwrite."
    )
    overwrite: bool = option(False, "Replace the tokenizer in --output-dir.")

    streaming: bool = option(
        False, "Read the data as it is needed instead of loading it; the first documents are held out."
    )
    held_out_fraction: float = option(0.1, "Fraction of the documents on which the report is measured.")
    sample_megabytes: float = option(32.0, "Train on a uniform sample of at most N million bytes of the text.")

    kind: Literal["bpe", "wordpiece", "unigram", "word", "char"] = option(
        "bpe", "Kind of tokenizer: byte-level BPE, WordPiece, Unigram, words or characters."
    )
    pre_tokenizer: Literal["gpt2", "qwen35"] = option(PRE_TOKENIZER, PRE_TOKENIZER_HELP)
    vocab_size: int = option(8192, "Maximum number of tokens, special tokens included.")
    min_frequency: int = option(2, "Minimum number of occurrences for a merge or a token.")
    special_tokens: str | None = option(None, "Additional special tokens in brackets: `<|user|>,[SEP]`.")
    chat_template: str | None = option(None, "Chat template to store: `chatml` or a .jinja file.")
    model_max_length: int | None = option(None, "Longest input of its model in tokens, stored with the tokenizer.")
    compare: str = option(
        "openai-community/gpt2", "Folder or Hub id of a tokenizer to compare with; `none` for no comparison."
    )
    encoder: Literal["auto", "tokenizers", "gigatoken"] = option("auto", ENCODER_HELP)
    rare: int = option(10, "Report tokens with fewer than N occurrences in the sample as under-trained.")
    seed: int = option(0, "Seed of the held-out documents and the sample.")


TOKENIZER_LIMITS = {  # minimum and maximum of each field
    "sample_megabytes": (0.001, 10**6),
    "vocab_size": (1, 2**24),
    "min_frequency": (1, 10**9),
    "model_max_length": (1, 10**9),
    "rare": (1, 10**9),
    "seed": (0, 2**63 - 1),
}


def unused_fields(run: TokenizerRun) -> dict[str, str]:
    """Return the fields that have no effect in this run, with the reason."""
    unused = {} if run.kind == "bpe" else {"pre_tokenizer": "it needs --kind bpe"}
    return unused | unused_source(run.dataset)


def check(run: TokenizerRun) -> None:
    """Raise a ValueError for the first invalid field; `plan_tokenizer` checks the remaining ones."""
    for name, (smallest, largest) in TOKENIZER_LIMITS.items():
        check_range(name, getattr(run, name), smallest, largest)
    if not 0 < run.held_out_fraction < 1:
        raise ValueError(f"--held-out-fraction must be between 0 and 1 (you gave {run.held_out_fraction}).")
    check_encoder(run.encoder)
    for name in ("output_dir", "dataset"):
        if not getattr(run, name):
            raise ValueError(f"{flag(name)} is empty.")


def choose_folder(run: TokenizerRun) -> Path:
    """Return the folder to write; raise a ValueError if it contains files that may not be replaced."""
    folder = Path(run.output_dir).resolve()
    if is_filled(folder):
        if not TOKENIZER_FILES <= {path.name for path in folder.iterdir()} or not is_report(folder / "report.json"):
            raise ValueError(
                f"--output-dir {run.output_dir} exists but was not written by this recipe. Choose another."
            )
        if not run.overwrite:
            raise ValueError(
                f"--output-dir {run.output_dir} already contains a tokenizer. Replace it with --overwrite true."
            )
        check_read_paths(run)
    return folder


def is_report(file: Path) -> bool:
    """Return whether a file is a report of this recipe."""
    from scratch_gpt.utils.foreign import read_json

    try:
        return {"fingerprint", "run", "unused"} <= read_json(file).keys()
    except ValueError:
        return False


def open_texts(run: TokenizerRun) -> tuple[Iterable[str], Iterable[str]]:
    """Return the texts to train on, with a progress bar, and the held-out texts."""
    from tqdm.auto import tqdm

    from scratch_gpt.data.sources.documents import open_documents, split_documents
    from scratch_gpt.data.sources.streaming import open_stream
    from scratch_gpt.utils.foreign import shown

    where = dataset_location(run)
    if run.streaming:
        stream = open_stream(where, run.text_column, run.held_out_fraction)
        texts = (text for shard in range(stream.shards) for text in stream.read(shard, 0))
        held_out, total, notices = stream.splits["validation"], None, stream.notices
    else:
        documents, _, notices = open_documents(where, run.text_column)
        # cast here and below: datasets declares that a batch or row may also be a list
        splits = split_documents(documents, run.held_out_fraction, seed=run.seed)
        texts = (text for batch in cast(Any, splits["train"]).iter(100) for text in batch["text"])
        held_out, total = splits["validation"], len(splits["train"])
    print(*map(shown, notices), sep="\n", end="\n" * bool(notices))
    return tqdm(texts, "Reading", total, unit=" documents", delay=1), (row["text"] for row in cast(Any, held_out))


def load_peer(name: str):
    """Load the tokenizer to compare with as {name: tokenizer}; print a message and return {} if that fails."""
    from scratch_gpt import load_tokenizer

    if name == "none":
        return {}
    try:
        return {name: load_tokenizer(name)}
    except ValueError:
        print(f"No comparison: {name} could not be loaded. Compare with another tokenizer: --compare FOLDER.")
        return {}


def describe(run: TokenizerRun, report: dict) -> str:
    """Return a summary of the report and the next command."""
    from scratch_gpt.tokenization.pre_tokenizers import advise_pre_tokenizer
    from scratch_gpt.utils.wording import plural

    bytes_used, bytes_seen = report["bytes_used"], report["bytes_seen"]
    advice = advise_pre_tokenizer(run.pre_tokenizer if run.kind == "bpe" else None, report["mark_share"])
    is_small = report["vocab_size"] < run.vocab_size and run.kind != "char"  # the text limits the number of characters
    fewer = f" instead of {run.vocab_size:,} (the text yields no more)" if is_small else ""
    lines = [
        f"Tokenizer: {run.kind}, {report['vocab_size']:,} tokens{fewer}, fingerprint {report['fingerprint'][:12]}",
        f"  trained on: {bytes_used:,} bytes"
        + (f", a sample of {bytes_seen:,}" if bytes_used < bytes_seen else " (the complete text)"),
        f"  held out:   {report['bytes']:,} bytes, {report['characters_per_token']:.2f} characters or "
        f"{report['bytes_per_token']:.2f} bytes per token"
        + "".join(f", {name} {value:.2f} bytes" for name, value in report["peers"].items()),
        f"  round trip failed for {report['round_trip_failures']:,} of {plural(report['texts'], 'text')}; "
        f"{report['unknown']:,} of {report['tokens']:,} tokens unknown",
        f"  never seen in training: {report['unused']['count']:,} tokens; fewer than {report['rare']} times: "
        f"{report['under_trained']['count']:,} (listed in report.json)",
        *([] if advice is None else [f"  {name_flags(advice, {'pre_tokenizer'})}"]),
        f"Next: {command(f'pretrain --tokenizer {run.output_dir}')}",
    ]
    return "\n".join(lines)


def make_tokenizer(run: TokenizerRun, folder: Path) -> dict:
    """Train a tokenizer, write its folder atomically, and return its report."""
    import json

    from scratch_gpt.runs.folder import replace_folder
    from scratch_gpt.tokenization.pre_tokenizers import mark_share
    from scratch_gpt.tokenization.tokenizer import tokenizer_report
    from scratch_gpt.tokenization.training import plan_tokenizer, sample_texts, train_tokenizer
    from scratch_gpt.utils.files import DRAFT, remove

    settings = {
        "vocab_size": run.vocab_size,
        "special_tokens": [token.strip() for token in (run.special_tokens or "").split(",") if token.strip()],
        "min_frequency": run.min_frequency,
        "kind": run.kind,
        "chat_template": run.chat_template,
        "pre_tokenizer": run.pre_tokenizer if run.kind == "bpe" else None,
    }
    plan_tokenizer(**settings)  # check the settings before reading the text
    texts, held_out = open_texts(run)
    sample = sample_texts(texts, int(run.sample_megabytes * 1e6), run.seed)
    has_bars = sys.stderr.isatty()  # outside a terminal the library would print only empty lines
    settings |= {"model_max_length": run.model_max_length, "show_progress": has_bars, "encoder": run.encoder}
    tokenizer = train_tokenizer(sample, **settings)
    held_out = sample_texts(held_out, HELD_OUT_MEGABYTES * 1_000_000, run.seed)
    report = tokenizer_report(tokenizer, held_out, load_peer(run.compare), sample, run.rare)
    report.update(
        {
            "bytes_seen": sample.bytes_seen,
            "bytes_used": sample.bytes_used,
            "mark_share": mark_share(sample),
            "run": {name: relative(value) for name, value in asdict(run).items()},
        }
    )
    draft = folder.with_name(DRAFT + folder.name)
    remove(draft)
    try:
        draft.mkdir(parents=True)
        tokenizer.save_pretrained(draft)
        (draft / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        replace_folder(draft, folder)
    finally:
        remove(draft)
    return report


def main(argv: list[str] | None = None) -> None:
    with one_clear_line(stopped=""):
        run = parse(TokenizerRun, argv, unused=unused_fields)
        check(run)
        check_writable(Path(run.output_dir))

        from scratch_gpt.utils.foreign import shown
        from scratch_gpt.utils.locks import hold

        with hold(run.output_dir):
            report = make_tokenizer(run, choose_folder(run))
    print(shown(describe(run, report)))


if __name__ == "__main__":
    main()
