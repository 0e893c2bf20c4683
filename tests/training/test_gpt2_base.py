"""Test that every recipe tunes a GPT-2 folder to the same weights on one and two processes, and resumes exactly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpt2_base_worker
import pytest
import torch
from places import TESTS
from safetensors.torch import load_file
from tiny import tiny_gpt2

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.training import train_tokenizer


WORDS = "sea sun sand boat wave salt tree moss".split()
TEXTS = [f"{WORDS[n % 8]} and {WORDS[n // 8]}{' again' * (n % 3)}" for n in range(48)]


def write_lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Make a stock GPT-2 folder with a chat template, and a data file for each recipe."""
    base = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    gpt2 = tiny_gpt2(vocab_size=310, n_positions=192, initializer_range=0.02)
    gpt2.save_pretrained(base / "gpt2")
    store_format(tokenizer, "alpaca", ScratchGPTForCausalLM.from_pretrained(base / "gpt2"))
    tokenizer.save_pretrained(base / "gpt2")
    (base / "story.txt").write_text("\n".join(TEXTS * 8))
    write_lines(base / "labeled.jsonl", [{"text": text, "label": str("sun" in text)} for text in TEXTS])
    (base / "instructions.json").write_text(
        json.dumps([{"instruction": f"Say {text}", "input": "", "output": text} for text in TEXTS])
    )
    pairs = [{"prompt": f"Where is {t}?", "chosen": f"Please, {t}.", "rejected": f"No {t}!"} for t in TEXTS]
    write_lines(base / "pairs.jsonl", pairs)
    return base


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory) -> dict[int, Path]:
    """Run gpt2_base_worker.py on one process and on two, with the same global batch."""
    out = tmp_path_factory.mktemp("runs")
    folders = {1: out / "one", 2: out / "two"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        gpt2_base_worker.main(str(base), folders[1], "2")
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(TESTS / "helpers"),
    }
    command += [TESTS / "helpers" / "gpt2_base_worker.py", base, folders[2], "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


def weights(folder: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step}" / "model.safetensors")


@pytest.mark.parametrize("name", gpt2_base_worker.RUNS)
def test_two_processes_reach_the_weights_of_one(runs, name):
    one, two = (weights(runs[count] / name) for count in (1, 2))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        if key.endswith("k_proj.bias"):
            continue  # its exact gradient is 0, and AdamW turns rounding errors into full steps
        torch.testing.assert_close(two[key], tensor, atol=1e-4, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    moved = max((tensor - weights(runs[1] / name, 2)[key]).abs().max() for key, tensor in one.items())
    assert moved > 5e-4  # the weights have changed by more than the tolerance


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_ends_with_the_same_bits(runs, processes):
    straight, resumed = (weights(runs[processes] / name) for name in ("pretrain-full", "resumed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
