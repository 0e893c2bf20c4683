"""Text -> a GPT that Hugging Face clients load: pretraining, from scratch or going on from a model.

    accelerate launch training/pretrain.py [--config FILE.yaml] [--field value ...]

Without arguments: the documentation of the Python that runs this, a tokenizer trained on it and a model of a few
million parameters. Writes output_dir/model (weights, config, code, tokenizer), loss.png, metrics.jsonl,
evaluation.json, run.yaml and checkpoints/.
"""

import os
from dataclasses import dataclass
from typing import Literal

from recipe import Run, check, one_clear_line, option, parse, parse_overrides


@dataclass(frozen=True)
class PretrainRun(Run):
    """The shared fields and this recipe's own."""

    output_dir: str = option("runs/pretrain", "Folder to write; one that holds a run is refused without --overwrite.")
    stride: int | None = option(None, "From one window's start to the next; by default max_length: nothing repeats.")
    overlap: Literal["ask", "context"] = option("ask", "At a smaller stride, what windows share: asked again, or not.")
    drop_tail: bool = option(False, "Leave out a split's last window where it is not full.")


def build(run: PretrainRun):
    """Documents -> splits -> tokenizer -> windows, and the model that fits them."""
    from functools import partial

    from tqdm.auto import tqdm

    from runner import Task
    from scratch_gpt.data.collate import collate_rows
    from scratch_gpt.data.sources import open_documents, open_stream, split_documents, token_stream
    from scratch_gpt.data.streams import TokenLanes
    from scratch_gpt.data.windows import Windows, require_full_window
    from scratch_gpt.evaluation import language_metrics
    from scratch_gpt.generation import generate_text
    from scratch_gpt.objectives import causal_lm
    from scratch_gpt.tokenizer import check_vocabulary, encode_batch, end_of_text_id, load_tokenizer
    from scratch_gpt.tokenizer_training import train_tokenizer

    where = (run.dataset, run.dataset_config, run.dataset_split, run.dataset_revision, run.text_column)
    if run.streaming:
        stream = open_stream(*where, run.validation_fraction, run.test_fraction)
        splits = stream.splits
    else:
        splits = split_documents(open_documents(*where), run.validation_fraction, run.test_fraction, run.seed)
    source = run.tokenizer or run.model or "train"
    if source == "train":
        texts = (text for batch in splits["train"].iter(100) for text in batch["text"])
        shown = tqdm(
            texts, "Training a tokenizer", len(splits["train"]), delay=1, disable=os.environ.get("RANK", "0") != "0"
        )
        tokenizer = train_tokenizer(shown, run.vocab_size)
    else:
        tokenizer = load_tokenizer(source, run.model_revision if source == run.model else None)
    eos = end_of_text_id(tokenizer)
    model = build_model(run, tokenizer)
    check_vocabulary(tokenizer, model.config.vocab_size)
    max_length = run.max_length or model.config.max_position_embeddings
    if max_length > model.config.max_position_embeddings:
        raise ValueError(
            f"max_length {max_length} is more than the model's context, {model.config.max_position_embeddings} tokens."
        )

    encode = partial(encode_batch, tokenizer)
    streams, rows, facts = {}, {}, {}
    for name, part in splits.items():
        ids = token_stream(part, encode, eos, f"Tokenizing {name}")
        streams[name] = ids
        facts[name] = {"documents": ids.documents, "bytes": ids.bytes, "tokens": len(ids.ids), "sha256": ids.sha256}
        if name == "train" and run.streaming:
            rows[name] = TokenLanes(
                stream.read, stream.shards, encode, eos, max_length, lanes=run.stream_lanes, seed=run.seed
            )
            for lane in range(run.stream_lanes):
                next(rows[name].rows(lane))  # a lane without documents is said now
            facts[name] = {"streamed": True, "shards": stream.shards, "beginning": facts[name]}
            continue
        require_full_window(ids.ids, max_length, name)
        # The training windows may overlap; held-out tokens are asked once.
        stride = run.stride if name == "train" else None
        rows[name] = Windows(ids.ids, max_length, stride, run.overlap, run.drop_tail)
        facts[name]["rows"] = len(rows[name])
    return Task(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=partial(collate_rows, pad_token_id=eos, length=max_length),
        objective=causal_lm,
        metrics=lambda losses, split: language_metrics(losses["loss"], len(streams[split].ids) / streams[split].bytes),
        sample=lambda model: (
            run.sample_prompt
            + generate_text(model, tokenizer, run.sample_prompt, max_new_tokens=40, temperature=0.8, top_k=50)
        ),
        tokens_per_row=max_length if run.streaming else rows["train"].asked_per_row,
        facts=facts,
    )


def build_model(run: PretrainRun, tokenizer):
    """A new model of `preset` for this tokenizer, or the one that `model` names, in fp32."""
    import torch

    from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM

    rates = ("embed_dropout", "attention_dropout", "resid_dropout")
    changes = {} if run.dropout is None else dict.fromkeys(rates, run.dropout)
    torch.manual_seed(run.seed)
    if run.model is None:
        fields = {
            "vocab_size": max(tokenizer.get_vocab().values()) + 1,
            **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            # A position that no row reaches would stay random: the context of a new model is its rows' length.
            **({} if run.max_length is None else {"max_position_embeddings": run.max_length}),
        }
        overrides = parse_overrides(run.config_overrides, ScratchGPTConfig)
        config = ScratchGPTConfig.from_preset(run.preset or "tiny", **{**fields, **changes, **overrides})
        model = ScratchGPTForCausalLM(config)
    else:
        model = load_model(run.model, run.model_revision, changes)
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if run.compile:
        model.compile()
    return model


def load_model(name: str, revision: str | None, changes: dict):
    """A GPT-2 shaped model of a folder or the Hub in fp32; ValueError in one line for anything else."""
    import torch

    from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM

    try:
        found, _ = ScratchGPTConfig.get_config_dict(name, revision=revision)
        if found.get("model_type") != ScratchGPTConfig.model_type:
            raise ValueError(f"it is a {found.get('model_type')}, and only GPT-2 shaped models can be trained here.")
        if found.get("activation_function") == "gelu_new" or found.get("hidden_act") == "gelu_new":
            changes = {**changes, "hidden_act": "gelu_pytorch_tanh"}  # the same function as one fused operation
        model, report = ScratchGPTForCausalLM.from_pretrained(
            name, revision=revision, dtype=torch.float32, output_loading_info=True, **changes
        )
        if report["missing_keys"]:
            raise ValueError(f"it lacks {min(report['missing_keys'])}.")
    except Exception as error:  # a damaged file, a wrong shape, no such repository: each library has its own kind
        raise ValueError(f"--model {name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return model


def describe(run: PretrainRun, task, settings, steps: int, accelerator) -> str:
    """What is about to happen, in a few lines."""
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    config = task.model.config
    lines = [
        f"Model: {parameters:,} parameters ({config.num_hidden_layers} layers, {config.hidden_size} wide, vocabulary "
        f"{config.vocab_size:,}), {accelerator.device.type}, {accelerator.num_processes} process(es), "
        f"precision {'fp32' if accelerator.mixed_precision == 'no' else accelerator.mixed_precision}"
    ]
    T = task.collate.keywords["length"]
    for name, facts in task.facts.items():
        if "streamed" in facts:
            lines.append(f"{name:>10}: streamed, {facts['shards']} file(s) in {run.stream_lanes} lanes, rows of {T}")
            continue
        lines.append(
            f"{name:>10}: {facts['documents']:,} documents, {facts['bytes']:,} bytes, {facts['tokens']:,} tokens, "
            f"{facts['rows']:,} rows of {T}"
        )
    batch = settings.batch_size * settings.accumulation_steps * accelerator.num_processes
    lines.append(f"Training: {steps:,} steps of {batch} rows, {steps * batch * task.tokens_per_row:,} tokens at most")
    if run.stride is not None and run.stride < T:
        again = "asked again, which invites memorisation" if run.overlap == "ask" else "context only"
        lines.append(f"stride {run.stride} < max_length {T}: {T - run.stride} tokens of each window are {again}.")
    return "\n".join(lines)


def check_stream(run: PretrainRun) -> None:
    """Raise a ValueError for what a stream cannot do."""
    if run.streaming and (run.stride is not None or run.drop_tail):
        raise ValueError("A stream is cut into windows end to end: leave --stride and --drop-tail out.")


def main(argv: list[str] | None = None) -> None:
    with one_clear_line():
        run = parse(PretrainRun, argv)
        check(run)
        check_stream(run)

        from runner import carry_out, compare, is_finished, prepare, settle, start_accelerator

        start = prepare(run)
        task = build(run)
        accelerator = start_accelerator(run, start)
        settings, steps = settle(run, start, task, accelerator.num_processes)
        record, changes = compare(run, start, task, accelerator, settings)
        for notice in (*start.notices, *changes):
            accelerator.print(notice)
        if is_finished(run, start, steps):
            accelerator.print(f"{run.output_dir} is already finished. A larger limit (or --patience) goes on with it.")
            return
        accelerator.print(describe(run, task, settings, steps, accelerator))

    from scratch_gpt.checkpoints import CheckpointError
    from scratch_gpt.saving import RunStopped

    with one_clear_line(MemoryError, CheckpointError, RunStopped):
        carry_out(run, start, task, accelerator, settings, steps, record)


if __name__ == "__main__":
    main()
