# /// script
# requires-python = ">=3.11"
# dependencies = ["scratch_gpt"]
#
# [tool.uv.sources]
# scratch_gpt = { path = "..", editable = true }
# ///
"""Pretrain a GPT that Hugging Face clients can load, from random weights or from another model.

    accelerate launch training/pretrain.py [--config FILE.yaml] [--field value ...]

The data are text, or a folder written by the recipe `prepare`. Without arguments, a model of a few million parameters
learns the documentation of the Python that runs this, with a tokenizer trained on it.

The recipe writes output_dir/model (weights, config, code, tokenizer), loss.png, metrics.jsonl, evaluation.json,
run.yaml, manifest.json and checkpoints/.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from scratch_gpt_training.support.options import (
    ENCODER_HELP,
    Run,
    check_encoder,
    check_rows,
    dataset_location,
    missed_shares,
    option,
    unused_options,
)
from scratch_gpt_training.support.run.recipe import run_recipe


SAMPLE_PROMPT = "The"  # for the text sampled at the end of a run
# Fields that decide how text becomes rows; for prepared data prepare.py has applied them.
PREPARED = ("dataset_config", "dataset_split", "dataset_revision", "text_column", "streaming", "stream_lanes")
PREPARED += ("validation_fraction", "test_fraction", "overlap", "drop_tail", "vocab_size", "tokenizer_kind")
PREPARED += ("pre_tokenizer", "encoder")


@dataclass(frozen=True)
class PretrainRun(Run):
    """Pretraining."""

    output_dir: str = option(
        "runs/pretrain", "Folder of the run; one that holds files is refused without --overwrite."
    )
    stride: int | None = option(
        None, "Tokens between the starts of two windows; by default --max-length (no overlap)."
    )
    overlap: Literal["ask", "context"] = option(
        "ask", "With overlapping windows: train on shared tokens again (ask), or use them as context only (context)."
    )
    drop_tail: bool = option(False, "Drop a split's last window if it is not full.")
    pack: bool = option(False, "Pack several whole documents into each row; they do not attend to each other.")
    pad: bool = option(False, "Use one document per row, in batches of similar length.")
    encoder: Literal["auto", "tokenizers", "gigatoken"] = option("auto", ENCODER_HELP)
    mask_inputs: int = option(0, "Replace 1 to N input tokens of each row (N at most 3) to reduce memorization.")
    manifest: str | None = option(
        None, "manifest.json of a run or of prepared data; training on other data is refused."
    )


def build(run: PretrainRun):
    """Return the task: rows of tokens, made here or by prepare.py, and a model for them."""
    from functools import partial

    from scratch_gpt.data.manifest import is_prepared, read_manifest, verify_same
    from scratch_gpt.data.rows.collate import collate_rows
    from scratch_gpt.data.rows.windows import mask_inputs
    from scratch_gpt.train.objectives import causal_lm
    from scratch_gpt_training.support.run.models import small_preset, small_vocabulary
    from scratch_gpt_training.support.run.setup import apply_tune
    from scratch_gpt_training.support.run.task import Hooks, Task

    prepared = read_manifest(run.dataset) if is_prepared(run.dataset) else None
    if prepared is not None and prepared["task"] != "pretrain":
        prepared = None
    parts = make_rows(run) if prepared is None else use_prepared(run, prepared)
    tokenizer, model, rows, manifest, notices = parts
    notices += small_vocabulary(run, tokenizer) if prepared is None else []
    notices += [*small_preset(run, model.config), *apply_tune(run, model)]
    if run.manifest is not None:
        verify_same(read_manifest(run.manifest), manifest, run.manifest)
    max_length = manifest["max_length"]
    length = None if manifest["pad"] else max_length
    masks = (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    mask = next(id for id in masks if id is not None)
    augment = partial(mask_inputs, mask_token_id=mask, most=run.mask_inputs, seed=run.seed)

    return Task(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=partial(collate_rows, pad_token_id=tokenizer.eos_token_id, length=length, max_length=max_length),
        objective=causal_lm,
        measure=partial(measure, manifest["splits"]),
        tokens_per_row=max_length if run.streaming else rows["train"].asked_per_row,
        manifest=manifest,
        description=describe_data(run, manifest),
        next_steps=(
            'generate --model {folder}/model --prompt "The"',
            "pretrain --dataset YOUR.txt --output-dir runs/mine",
            "publish {folder} --repo USER/NAME --dry-run",
        ),
        group_by_length=manifest["pad"],
        notices=notices,
        hooks=Hooks(
            sample_text=partial(sample_text, run, tokenizer),
            sample_method="temperature 0.8, top-k 50",
            augment=augment if run.mask_inputs else None,
        ),
    )


def make_rows(run: PretrainRun) -> tuple[Any, Any, dict[str, Any], dict[str, Any], list[str]]:
    """Split and tokenize the documents and make rows; return (tokenizer, model, rows, manifest, notices)."""

    from scratch_gpt.data.manifest import make_manifest
    from scratch_gpt.data.sources.documents import open_splits
    from scratch_gpt.data.sources.streaming import open_stream
    from scratch_gpt.data.sources.token_stream import token_stream
    from scratch_gpt.tokenization.encoders import Encoder, spread
    from scratch_gpt.tokenization.tokenizer import end_of_text_id, tokenizer_facts
    from scratch_gpt_training.support.run.models import build_model, open_tokenizer, row_length

    stream, by_number = None, not run.streaming and matches_older(run)
    opening = dataset_location(run), run.text_column, run.validation_fraction, run.test_fraction
    if run.streaming:
        stream = open_stream(*opening)
        splits, source, notices = stream.splits, stream.record, stream.notices
    else:
        splits, source, notices = open_splits(*opening, run.seed, by_number)
    tokenizer = open_tokenizer(run, training_texts(splits["train"]))
    texts = splits["train"]
    encode = Encoder(tokenizer, run.encoder, lambda: spread(len(texts), lambda n: texts[n]["text"]))
    eos = end_of_text_id(tokenizer)
    model = build_model(run, tokenizer, run.max_length)
    max_length = row_length(run, model)

    rows, records, encoder = {}, {}, None
    for name, part in splits.items():
        tokens = token_stream(part, encode, eos, f"Tokenizing {name}")
        encoder = tokens.encoder if name == "train" else encoder
        if name == "train" and stream is not None:
            rows[name], records[name] = stream_rows(run, stream, tokens, encode, eos, max_length)
        else:
            rows[name], records[name] = cut_rows(run, name, tokens, max_length)
    settings: dict[str, Any] = {
        "encoder": encoder,
        "max_length": max_length,
        "stride": run.stride or max_length,
        "pack": run.pack,
        "pad": run.pad,
    }
    if not (run.streaming or by_number):
        settings["split_by"] = "share of the text"
    manifest = make_manifest("pretrain", [source], records, tokenizer=tokenizer_facts(tokenizer), **settings)
    return tokenizer, model, rows, manifest, notices


def training_texts(documents) -> Iterator[str]:
    """Yield the texts for training a tokenizer, with a progress bar."""
    from tqdm.auto import tqdm

    quiet = os.environ.get("RANK", "0") != "0"
    texts = (text for batch in documents.iter(100) for text in batch["text"])
    yield from tqdm(texts, "Training a tokenizer", len(documents), delay=1, disable=quiet)


def describe_tokens(tokens) -> dict[str, int]:
    """Return the manifest's facts about the documents of a split."""
    return {"documents": len(tokens.ends), "bytes": tokens.bytes, "tokens": len(tokens.ids)}


def stream_rows(run: PretrainRun, stream, beginning, encode, eos: int, max_length: int) -> tuple[Any, dict[str, Any]]:
    """Return the endless rows of a stream and their record; `beginning` is the tokens of its first documents."""
    from scratch_gpt.data.rows.streams import TokenLanes

    rows = TokenLanes(stream.read, stream.shards, encode, eos, max_length, lanes=run.stream_lanes, seed=run.seed)
    for lane in range(run.stream_lanes):
        next(rows.rows(lane))  # raises now if a lane has no documents
    facts = {"beginning": describe_tokens(beginning), "sha256": beginning.sha256}
    return rows, {"streamed": True, "shards": stream.shards, **facts}


def cut_rows(run: PretrainRun, split: str, tokens, max_length: int) -> tuple[Any, dict[str, Any]]:
    """Return the rows of a tokenized split, and their record."""
    from scratch_gpt.data.rows.packing import PackedRows
    from scratch_gpt.data.rows.windows import Windows, require_full_window

    facts: dict[str, Any] = describe_tokens(tokens)
    if run.pack or run.pad:
        rows = PackedRows(tokens.ids, tokens.ends, max_length, pack=run.pack)
        facts |= {"padding_share": rows.padding_share} if run.pack else {}
        facts |= {"cut_share": rows.cut_share}
    else:
        require_full_window(tokens.ids, max_length, split)
        # The training windows may overlap; each held-out token is a target once.
        stride = run.stride if split == "train" else None
        rows = Windows(tokens.ids, max_length, stride, run.overlap, run.drop_tail)
    return rows, {**facts, "rows": len(rows), "sha256": tokens.sha256}


def measure(records, model, batches, reduce, split):
    """Return the metrics of a split."""
    from scratch_gpt.evaluation.losses import language_metrics, mean_losses
    from scratch_gpt.train.objectives import causal_lm

    loss = mean_losses(model, batches, causal_lm, reduce)["loss"]
    return language_metrics(loss, records[split]["tokens"] / records[split]["bytes"]), {}


def sample_text(run: PretrainRun, tokenizer, model) -> str:
    """Return the sample prompt with the model's continuation."""
    from scratch_gpt.generation.generate import generate_text

    prompt = SAMPLE_PROMPT if run.sample_prompt is None else run.sample_prompt
    text: Any = generate_text(model, tokenizer, prompt, max_new_tokens=40, temperature=0.8, top_k=50)
    return prompt + text


def matches_older(run: PretrainRun) -> bool:
    """Return whether the run to resume, or the manifest to match, is from a version that split by document count."""
    from contextlib import suppress
    from pathlib import Path

    from scratch_gpt.data.manifest import MANIFEST_FILE, read_manifest

    manifests = [] if run.manifest is None else [read_manifest(Path(run.manifest))]
    if run.resume is not None:
        folder = Path(run.output_dir) if run.resume == "latest" else Path(run.resume).resolve().parent.parent
        with suppress(ValueError):  # the checkpoint's record of the data is compared in any case
            manifests.append(read_manifest(folder / MANIFEST_FILE))
    return any("split_by" not in manifest for manifest in manifests)


def use_prepared(
    run: PretrainRun, manifest: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any], dict[str, Any], list[str]]:
    """Read a prepared folder, with the result of `make_rows`; ValueError if the run's options differ from it."""

    from scratch_gpt.data.manifest import verify_files
    from scratch_gpt.data.prepared.storage import PreparedRows
    from scratch_gpt.tokenization.tokenizer import count_ids, fingerprint, load_tokenizer
    from scratch_gpt.utils.local_files import local_path
    from scratch_gpt_training.support.run.models import build_model

    folder = local_path(run.dataset)
    verify_files(folder, manifest)
    for name in ("max_length", "stride", "pack", "pad"):
        value = getattr(run, name)
        if value not in (None, False) and value != manifest[name]:
            raise ValueError(
                f"{run.dataset} was prepared with {name} {manifest[name]}, and this run has {value}. Remove "
                f"--{name.replace('_', '-')}, or prepare the data again."
            )
    name = run.tokenizer or run.model
    tokenizer = load_tokenizer(folder / "tokenizer")
    if name is not None:
        other_tokenizer = load_tokenizer(name, run.model_revision if name == run.model else None)
        if fingerprint(other_tokenizer) != manifest["tokenizer"]["fingerprint"]:
            raise ValueError(
                f"{run.dataset} was prepared with another tokenizer than {name}'s. Prepare it with --tokenizer {name}."
            )
    model = build_model(run, tokenizer, manifest["max_length"])
    limits = count_ids(tokenizer), manifest["max_length"]
    rows = {name: PreparedRows(folder / name, facts["asked"], *limits) for name, facts in manifest["splits"].items()}
    verified = "each file's sha256, and that each id is in the vocabulary"
    return tokenizer, model, rows, {**manifest, "verified": verified}, []


def describe_data(run: PretrainRun, manifest: dict) -> list[str]:
    """Describe the splits and the overlap of windows."""
    from scratch_gpt.data.manifest import is_prepared
    from scratch_gpt.utils.wording import plural

    lines, T = [], manifest["max_length"]
    sizes = {name: facts["bytes"] for name, facts in manifest["splits"].items() if "bytes" in facts}
    for name, facts in manifest["splits"].items():
        if "streamed" in facts:
            lines.append(
                f"{name:>10}: streamed, {plural(facts['shards'], 'file')} in {run.stream_lanes} lanes, rows of {T}"
            )
            continue
        padding = f", {facts['padding_share']:.1%} padding" if "padding_share" in facts else ""
        share = "" if run.streaming else f" ({100 * sizes[name] / sum(sizes.values()):.1f} % of the text)"
        lines.append(
            f"{name:>10}: {plural(facts['documents'], 'document')}, {facts['bytes']:,} bytes{share}, "
            f"{facts['tokens']:,} tokens, {plural(facts['rows'], 'row')} of {T}{padding}"
        )
    if not (run.streaming or is_prepared(run.dataset)):
        lines += missed_shares(run, sizes, "text")
    if run.stride is not None and run.stride > T:
        lines.append(f"stride {run.stride} > max_length {T}: {run.stride - T} tokens between windows are not learned.")
    if run.stride is not None and run.stride < T:
        purpose = "learned again, which invites memorization" if run.overlap == "ask" else "context only"
        lines.append(f"stride {run.stride} < max_length {T}: {T - run.stride} tokens of each window are {purpose}.")
    return lines


def unused_fields(run: PretrainRun) -> dict[str, str]:
    """Return the fields that this run does not use, with the reasons."""
    from scratch_gpt.data.manifest import is_prepared, read_manifest

    unused = unused_options(run)
    if run.stride is None:
        unused["overlap"] = "it needs a --stride smaller than --max-length"
    if is_prepared(run.dataset) and read_manifest(run.dataset)["task"] == "pretrain":
        unused |= dict.fromkeys(PREPARED, f"{run.dataset} is prepared, with its own tokenizer and splits")
    return unused


def check_data(run: PretrainRun) -> None:
    """Raise a ValueError for options that do not fit the data."""
    if run.streaming and (run.stride is not None or run.drop_tail or run.pack or run.pad):
        raise ValueError("A stream is cut into adjacent windows: remove --stride, --drop-tail, --pack and --pad.")
    check_rows(run)
    check_encoder(run.encoder)
    if run.mask_inputs > 3:
        raise ValueError(f"--mask-inputs must be at most 3, or 0 for none (you gave {run.mask_inputs}).")


def main(argv: list[str] | None = None, build: Callable[..., Any] = build) -> None:
    """Run the recipe; `build` makes the task, and can be replaced by another function."""
    run_recipe(PretrainRun, argv, build, check_data, unused_fields)


if __name__ == "__main__":
    main()
