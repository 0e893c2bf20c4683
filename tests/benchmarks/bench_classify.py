"""Time an epoch of classification: our loop against transformers' GPT2ForSequenceClassification with Trainer.

    python tests/benchmarks/bench_classify.py --spam FILE [--preset small] [--rounds 3] [--out FILE.json]

All have the same weights (drawn once, saved as stock GPT-2), texts, batch, precision and threads; each runs in a new
process, in turns. Trainer runs at its defaults (batches padded to their longest text, in random order) and with its
length grouping. The time is that from the first step to the last: no loading, tokenizing, evaluation or saving.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path


SIDES = ("ours", "theirs", "theirs grouped")


def make(folder: Path, options) -> None:
    """Write tokenized training texts, a tokenizer and the initial weights of all."""
    from scratch_gpt import ScratchGPTConfig, ScratchGPTForSequenceClassification, export_gpt2
    from scratch_gpt.data.rows.labels import LabeledRows, read_examples, split_examples
    from scratch_gpt.data.sources.documents import open_rows
    from scratch_gpt.tokenization.tokenizer import encode_batch
    from scratch_gpt.tokenization.training import train_tokenizer

    rows = open_rows(options.spam, column_names=["label", "text"]).rows
    examples = read_examples(rows["text"][:], rows["label"][:])
    examples = examples.take(split_examples(examples)["train"][: options.texts])
    tokenizer = train_tokenizer(examples.texts, vocab_size=4096)
    ids = {"vocab_size": 4096, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = ScratchGPTConfig.from_preset(options.preset, **ids, num_labels=2)
    export_gpt2(ScratchGPTForSequenceClassification(config), folder / "model", tokenizer)
    rows = LabeledRows(
        examples, partial(encode_batch, tokenizer), {"ham": 0, "spam": 1}, config.max_position_embeddings
    )
    lines = [{"input_ids": row["input_ids"].tolist(), "labels": int(row["labels"])} for row in rows]
    (folder / "rows.json").write_text(json.dumps(lines))


def ours(folder: Path, rows: list[dict], options) -> float:
    import numpy as np

    from scratch_gpt import ScratchGPTForSequenceClassification
    from scratch_gpt.conversion.load import load_model
    from scratch_gpt.data.rows.collate import collate_labeled
    from scratch_gpt.runs.folder import read_metrics
    from scratch_gpt.train.accelerator import best_attention, make_accelerator
    from scratch_gpt.train.loop import TrainingSettings, planned_steps, train_model
    from scratch_gpt.train.objectives import classification
    from scratch_gpt.train.optimizers import adamw

    class Rows(list):
        lengths = [len(row["input_ids"]) for row in rows]

    accelerator = make_accelerator("cpu", options.precision)
    model = load_model(str(folder / "model"), None, ScratchGPTForSequenceClassification).train()
    model.set_attn_implementation(best_attention("cpu", options.precision, model.config.max_position_embeddings))
    learned = Rows({name: np.array(value) for name, value in row.items()} for row in rows)
    settings = TrainingSettings(batch_size=options.batch_size, epochs=1, group_by_length=True, log_every=10**6)
    steps = planned_steps(settings, len(rows), 1, 1)
    limit = model.config.max_position_embeddings
    collate = partial(collate_labeled, pad_token_id=model.config.pad_token_id, max_length=limit)
    with tempfile.TemporaryDirectory() as out:
        train_model(
            *(accelerator, model, adamw(model, 5e-5, 0.1), lambda step: 5e-5),
            rows=learned,
            collate=collate,
            objective=classification(),
            settings=settings,
            steps=steps,
            output_dir=Path(out),
        )
        line = read_metrics(Path(out) / "metrics.jsonl")[-1]
    return line["tokens"] / line["tokens_per_second"]


def theirs(folder: Path, rows: list[dict], options, grouped: bool) -> float:
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        DataCollatorWithPadding,
        GPT2ForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    seconds = []

    class Clock(TrainerCallback):
        def on_step_begin(self, arguments, state, control, **rest):
            if state.global_step == 0:
                seconds.append(-time.perf_counter())

        def on_train_end(self, arguments, state, control, **rest):
            seconds[0] += time.perf_counter()

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out,
            num_train_epochs=1,
            per_device_train_batch_size=options.batch_size,
            train_sampling_strategy="group_by_length" if grouped else "random",
            bf16=options.precision == "bf16",
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            GPT2ForSequenceClassification.from_pretrained(folder / "model"),
            arguments,
            data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder / "model")),
            train_dataset=Dataset.from_list(rows),
            callbacks=[Clock()],
        )
        trainer.train()
    return seconds[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spam", required=True, help="label<TAB>text without a header")
    parser.add_argument("--preset", default="gpt2", help="shape of the model")
    parser.add_argument("--texts", type=int, default=160, help="texts of an epoch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write every run and the summary to this JSON file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.child:
        side, folder = options.child[0], Path(options.child[1])
        if side == "make":
            return make(folder, options)
        rows = json.loads((folder / "rows.json").read_text())
        found = ours(folder, rows, options) if side == "ours" else theirs(folder, rows, options, side != "theirs")
        print(f"\n{found}")
        return

    runs: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:

        def child(side: str) -> str:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", side, folder]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        child("make")
        for number in range(options.rounds):
            for side in SIDES if number % 2 else SIDES[::-1]:
                runs[side].append(float(child(side).splitlines()[-1]))
                print(f"round {number + 1}, {side}: {runs[side][-1]:.1f} s", flush=True)
    median = {side: statistics.median(values) for side, values in runs.items()}
    ratios = {side: median["ours"] / median[side] for side in SIDES[1:]}
    print(f"ours / theirs: {ratios['theirs']:.2f}; ours / theirs grouped: {ratios['theirs grouped']:.2f}")
    if options.out:
        how = {name: getattr(options, name) for name in ("preset", "texts", "batch_size", "precision", "rounds")}
        content = {
            **how,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "seconds": runs,
            "median": median,
            "ratios": ratios,
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
