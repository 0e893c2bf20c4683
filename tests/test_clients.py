"""Test clients that train and serve our model without changes: pipelines, TRL, transformers serve.

Other clients are tested elsewhere: Trainer in test_trainer.py, peft and bitsandbytes in test_adapters.py,
lm_eval in test_likelihood.py, TRL's losses in test_instruct.py and test_preferences.py, stock transformers in
test_compatibility.py.
"""

import json
import math
import os
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from datasets import Dataset
from tiny import some_ids, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, pipeline

from scratch_gpt import export_gpt2
from scratch_gpt.data.rows.conversations import encode_prompt
from scratch_gpt.generation.generate import generate_answers
from scratch_gpt.tokenization.chat_templates import store_format
from scratch_gpt.tokenization.training import train_tokenizer


WORDS = ["sea", "sun", "ship", "wood"]
TURNS = [[{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word}] for word in WORDS]
QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
QUIET |= {"logging_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "seed": 0}


def arguments(kind, folder, **changes):
    return kind(output_dir=str(folder), **{**QUIET, "per_device_train_batch_size": 4, "max_steps": 12, **changes})


def losses(trainer) -> list[float]:
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.fixture
def chat():
    """Return a model with a chat template, and its tokenizer."""
    tokenizer = train_tokenizer([str(turns) for turns in TURNS], 320)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=128)
    store_format(tokenizer, "chatml", model)
    return model.train(), tokenizer


# --- transformers ------------------------------------------------------------------------------------------------


def test_a_pipeline_gives_our_answers(chat):
    model, tokenizer = chat
    said = pipeline("text-generation", model=model.eval(), tokenizer=tokenizer)(
        TURNS[0][:1], max_new_tokens=8, do_sample=False
    )
    ours = generate_answers(model, tokenizer, [encode_prompt(tokenizer, TURNS[0][:1])], 8, temperature=0)
    assert said[0]["generated_text"][-1]["content"] == ours[0] != ""


# --- TRL ---------------------------------------------------------------------------------------------------------


def test_trl_tunes_on_conversations_and_saves_a_complete_model(chat, tmp_path):
    pytest.importorskip("trl")
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = chat
    config = arguments(SFTConfig, tmp_path, assistant_only_loss=True, max_length=128)
    rows = Dataset.from_list([{"messages": turns} for turns in TURNS])
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    found = losses(trainer)
    assert found[-1] < 0.3 * found[0]
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    ids = some_ids()
    assert_close(again(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def test_trl_preference_tuning_starts_at_log_2_and_lowers_the_loss(chat, tmp_path):
    pytest.importorskip("trl")
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = chat
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")  # the trainer reads its reference from there
    config = arguments(DPOConfig, tmp_path, max_length=128, learning_rate=1e-3)
    no = [{"role": "assistant", "content": "No"}]
    rows = Dataset.from_list([{"prompt": each[:1], "chosen": each[1:], "rejected": no} for each in TURNS])
    found = losses(DPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer))
    assert found[0] == pytest.approx(math.log(2), abs=1e-3)  # the reference is the model before training
    assert found[-1] < 0.5 * found[0]


# --- transformers serve ------------------------------------------------------------------------------------------


@pytest.mark.skipif("SCRATCH_GPT_SERVE" not in os.environ, reason="starts a server: set SCRATCH_GPT_SERVE=1 to run it")
def test_transformers_serve_completes_a_chat_on_the_stock_layout(chat, tmp_path):
    model, tokenizer = chat
    folder = export_gpt2(model.eval(), tmp_path / "stock", tokenizer)
    expected = generate_answers(model, tokenizer, [encode_prompt(tokenizer, TURNS[0][:1])], 8, temperature=0)
    assert expected[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--port", str(port)]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            asked = {"model": str(folder), "messages": TURNS[0][:1], "max_tokens": 8, "temperature": 0}
            answer = ask(f"http://127.0.0.1:{port}/v1/chat/completions", {**asked, "stream": False})
        finally:
            server.terminate()
    assert answer["choices"][0]["message"]["content"] == expected[0], (tmp_path / "log").read_text()


def ask(url: str, content: dict, minutes: float = 3) -> dict:
    """Return the answer of a server that may still be starting."""
    request = Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    end = time.monotonic() + 60 * minutes
    while True:
        try:
            with urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except URLError:
            if time.monotonic() > end:
                raise
            time.sleep(1)
