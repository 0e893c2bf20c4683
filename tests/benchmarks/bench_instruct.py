"""Measure instruction tuning in tokens per second, ours and TRL's SFTTrainer, with the same model, data and batch.

    python tests/benchmarks/bench_instruct.py --data FOLDER [--preset gpt2] [--rounds 2] [--out FILE.json]

The 1,100 Alpaca rows of instruction-data.json with GPT-2's tokenizer, 8 rows a step, loss on the answers, AdamW,
random weights, in the precision that suits the machine; the same mask and threads for all. Each way runs in a new
process, in turns: ours padded, packed, and trained on the prompts too; TRL at its defaults (activations are computed
twice), and TRL at its best here (activations kept, batches of similar length, metrics rarely logged).
Tokens are counted with and without loss, without padding; the first steps are warm-up. The pages quote the ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.conversations import PromptRows, encode_conversations, read_conversations
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.tokenizer import count_ids, load_tokenizer
from scratch_gpt.train.accelerator import best_attention, best_precision
from scratch_gpt.train.loop import TrainingSettings, train_model
from scratch_gpt.train.objectives import causal_lm
from scratch_gpt.train.optimizers import adamw


REPO = Path(__file__).resolve().parents[2]
WAYS = ("ours", "ours packed", "ours asking all", "trl defaults", "trl best")
BATCH, WARM, MAX_LENGTH, RATE = 8, 3, 256, 5e-5


def setup(options):
    """Return (tokenizer, model, conversations), the same for every way."""
    tokenizer = load_tokenizer(options.data / "gpt2-tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = ScratchGPTConfig.from_preset(options.preset, vocab_size=count_ids(tokenizer))
    model = ScratchGPTForCausalLM(config)
    store_format(tokenizer, "alpaca", model)
    conversations, _ = read_conversations(json.loads((options.data / "instruction-data.json").read_text()))
    return tokenizer, model, conversations


def ours(options, folder: str) -> dict:
    """Train with our loop; return the rates of its steps, except the first few and the last."""
    tokenizer, model, conversations = setup(options)
    train_on = "prompt+completion" if options.measure == "ours asking all" else "completion"
    encoded = encode_conversations(tokenizer, conversations, None, train_on)
    rows = PromptRows(encoded, MAX_LENGTH, pack=options.measure == "ours packed")
    seen, began = [0], []

    def collate(chosen):
        batch = collate_rows(chosen, tokenizer.pad_token_id, max_length=MAX_LENGTH)
        conversations_in = sum(int((row["position_ids"] == 0).sum()) if rows.pack else 1 for row in chosen)
        seen.append(seen[-1] + sum(len(row["input_ids"]) for row in chosen) + conversations_in)  # + the last token
        return batch

    # Called when a step starts and its batch exists; one batch was made before the first step.
    def learning_rate(step):
        began.append((time.perf_counter(), time.process_time(), seen[step + 1]))
        return RATE

    accelerator = Accelerator(mixed_precision=options.precision, cpu=not torch.cuda.is_available())
    model.set_attn_implementation(best_attention(accelerator.device.type, options.precision, MAX_LENGTH))
    settings = TrainingSettings(
        batch_size=BATCH, max_steps=options.steps, log_every=10**9, group_by_length=not rows.pack
    )
    train_model(
        *(accelerator, model.train(), adamw(model, RATE, 0.0), learning_rate),
        rows=rows,
        collate=collate,
        objective=causal_lm,
        settings=settings,
        steps=options.steps,
        output_dir=Path(folder),
    )
    return {"asked_share": rows.targets / (sum(rows.lengths) + len(rows.pairs)), **rate_of(began)}


def trl(options, folder: str) -> dict:
    """Train with TRL's trainer; return the same rates."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer, model, conversations = setup(options)
    best = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length", "logging_steps": 10**9}
    config = SFTConfig(
        **(best if options.measure == "trl best" else {}),
        output_dir=folder,
        assistant_only_loss=True,
        max_length=MAX_LENGTH + 1,  # one more: the last token is only a target
        max_steps=options.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        bf16=options.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    began, seen, asked = [], [0], [0]

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments, **others):
            began.append((time.perf_counter(), time.process_time(), seen[0]))

    class Counted(SFTTrainer):
        def compute_loss(self, model, inputs, *arguments, **others):
            seen[0] += int(inputs["attention_mask"].sum())
            asked[0] += int((inputs["labels"] != -100).sum())
            return super().compute_loss(model, inputs, *arguments, **others)

    data = Dataset.from_list([{"messages": messages} for messages in conversations])
    trainer = Counted(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    trainer.train()
    return {"asked_share": asked[0] / seen[0], **rate_of(began)}


def rate_of(began: list[tuple[float, float, int]]) -> dict:
    """Return tokens per second after WARM steps, from (clock, processor time, tokens so far) at the start of each."""
    seconds, busy, tokens = (last - first for first, last in zip(began[WARM], began[-1], strict=True))
    rates = {"tokens_per_second": tokens / seconds, "tokens_per_cpu_second": tokens / busy}
    return {"tokens": tokens, "seconds": seconds, **rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "tests" / "benchmarks" / "instruct.json")
    parser.add_argument("--data", type=Path, required=True, help="folder of instruction-data.json and gpt2-tokenizer/")
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--precision", default=best_precision("cpu"), choices=("no", "bf16"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)  # the work of a child process
    options = parser.parse_args()
    if options.measure:
        with tempfile.TemporaryDirectory() as folder:
            measured = (ours if options.measure.startswith("ours") else trl)(options, folder)
        print(json.dumps(measured))
        return
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    common = [f"--{name}={getattr(options, name)}" for name in ("data", "preset", "precision", "steps")]
    for _ in range(options.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--measure", way, *common]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    rates = ("tokens_per_second", "tokens_per_cpu_second")  # the second does not depend on other load
    medians = {
        rate: {way: statistics.median(turn[rate] for turn in turns) for way, turns in found.items()} for rate in rates
    }
    speed = medians["tokens_per_second"]
    summary = {
        "preset": options.preset,
        "precision": options.precision,
        "batch_size": BATCH,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "asked_share": found["ours"][0]["asked_share"],
        **medians,
        "over_trl_defaults": {way: speed[way] / speed["trl defaults"] for way in WAYS},
        "over_trl_best": {way: speed[way] / speed["trl best"] for way in WAYS},
        "over_asking_all": speed["ours"] / speed["ours asking all"],
        "turns": found,
    }
    options.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps({name: value for name, value in summary.items() if name != "turns"}, indent=2))


if __name__ == "__main__":
    main()
