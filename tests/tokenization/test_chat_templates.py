"""Test chat templates: the training format is used, and an unusable one is refused."""

import pytest
import torch
from tiny import tiny_model

from scratch_gpt.data.rows.conversations import encode_messages, encode_prompt
from scratch_gpt.tokenization.chat_templates import CHATML, choose_format, store_format, template_of
from scratch_gpt.tokenization.training import train_tokenizer


TEXTS = [
    "Below is an instruction. Write a response.\n\n### Input: user assistant system",
    "Well? Well, the sea is wide.",
]


def tokenizer_of(prompt_format: str | None, kind: str = "bpe"):
    tokenizer = train_tokenizer(TEXTS * 2, 400, kind=kind)
    if prompt_format is not None:
        store_format(tokenizer, prompt_format)
    return tokenizer


ASK, SAY = {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Well."}


def test_the_training_format_is_used_and_another_is_refused():
    tokenizer = tokenizer_of("chatml")
    assert choose_format(tokenizer) == choose_format(tokenizer, "tokenizer") == "chatml"
    for call in (lambda: encode_messages(tokenizer, [ASK, SAY], "alpaca"), lambda: template_of(tokenizer, "phi3")):
        with pytest.raises(ValueError, match="was trained with the format chatml, not with"):
            call()
    assert choose_format(tokenizer, "alpaca", replace=True) == "alpaca"
    notices = store_format(tokenizer, "alpaca")
    assert "Warning: the model's chat template is replaced by alpaca" in notices[0]
    assert choose_format(tokenizer) == "alpaca" and choose_format(train_tokenizer(TEXTS, 400)) == "alpaca"
    with pytest.raises(ValueError, match="has no chat template"):
        choose_format(tokenizer_of(None), "tokenizer")
    with pytest.raises(ValueError, match="prompt_format must be alpaca, book, chatml, .*, not 'llama'"):
        choose_format(tokenizer, "llama")


def test_a_chat_format_adds_its_tokens_and_its_end_token_becomes_eos(tmp_path):
    tokenizer = tokenizer_of(None)
    model = tiny_model(vocab_size=len(tokenizer))
    before = model.get_input_embeddings().weight.clone()
    notices = store_format(tokenizer, "phi3", model)
    assert any("<|assistant|> <|end|>" in notice for notice in notices)
    assert tokenizer.eos_token == "<|end|>" and tokenizer.bos_token == "<|endoftext|>"
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    after = model.get_input_embeddings().weight
    assert torch.equal(after[: len(before)], before) and len(after) == len(before) + 4
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert choose_format(again) == "phi3" and encode_messages(again, [ASK, SAY]) == encode_messages(
        tokenizer, [ASK, SAY]
    )
    assert store_format(tokenizer, "phi3", model) == []


BAD_TEMPLATES = {
    "no generation markers": CHATML.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", ""),
    "one special token that ends it": CHATML.replace("'<|im_end|>'", "'.'"),
    "begins an answer in training with": CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>\\n'"),
    "does not render a conversation": "{{ messages[7]['content'] | trim }}",
}


@pytest.mark.parametrize("message", BAD_TEMPLATES)
def test_an_unusable_template_is_a_one_line_error(message):
    tokenizer = train_tokenizer(TEXTS, 400, chat_template="chatml")
    tokenizer.chat_template = BAD_TEMPLATES[message]
    with pytest.raises(ValueError, match=message):
        store_format(tokenizer, choose_format(tokenizer))
    if message == "no generation markers":  # usable for prompts, not for training
        assert tokenizer.decode(encode_prompt(tokenizer, [ASK])).endswith("Well?<|im_end|>\n<|im_start|>assistant\n")
        with pytest.raises(ValueError, match="so the assistant's tokens cannot be located"):
            encode_messages(tokenizer, [ASK, SAY])
