"""Test decoding: greedy equals `model.generate`, cached equals uncached, rows are independent."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import VOCAB, padded, some_ids, tiny_gpt2, tiny_model

from scratch_gpt.generation.decoder import make_decoder
from scratch_gpt.generation.generate import filter_logits, generate, generate_text, largest, stream
from scratch_gpt.tokenization.tokenizer import END_OF_TEXT, encode
from scratch_gpt.tokenization.training import train_tokenizer


def plain_greedy(model, ids, new):
    """Decode as in the book: no cache, the last tokens that fit, the largest logit."""
    for _ in range(new):
        window = ids[:, -model.config.max_position_embeddings :]
        with torch.no_grad():
            ids = torch.cat([ids, model(window).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


def test_greedy_equals_generate_token_for_token():
    model, ids = tiny_model(), some_ids(3, 6)
    ours = generate(model, ids, max_new_tokens=30, temperature=0)
    stock = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
    assert torch.equal(ours, stock)


def wrapped_gpt2():
    """Wrap a stock GPT-2 with peft; the forward of the wrapper has no argument for positions."""
    return get_peft_model(tiny_gpt2(), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)).eval()


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2, wrapped_gpt2])
def test_left_padded_rows_equal_separate_rows_and_generate(make):
    model = make()
    prompts = [some_ids(1, n, seed=n)[0] for n in (3, 9, 5)]
    batch = padded(prompts)
    ours = generate(model, **batch, max_new_tokens=12, temperature=0)[:, 9:]
    stock = model.generate(**batch, max_new_tokens=12, do_sample=False, pad_token_id=0)[:, 9:]
    assert torch.equal(ours, stock)
    for prompt, row in zip(prompts, ours, strict=True):
        assert torch.equal(generate(model, prompt[None], max_new_tokens=12, temperature=0)[0, len(prompt) :], row)


def test_a_full_context_slides_like_the_plain_loop():
    model, ids = tiny_model(max_position_embeddings=16), some_ids(2, 10)
    assert torch.equal(generate(model, ids, max_new_tokens=20, temperature=0), plain_greedy(model, ids, 20))


def test_eos_stops_each_row_separately():
    model, ids = tiny_model(), some_ids(4, 6)
    free = generate(model, ids, max_new_tokens=20, temperature=0)[:, 6:]
    eos = int(free[1, 4])  # a token that row 1 generates
    decoder = make_decoder(model)
    stopped = generate(decoder, ids, max_new_tokens=20, temperature=0, eos_token_id=eos, pad_token_id=0)[:, 6:]
    for row, whole in zip(stopped.tolist(), free.tolist(), strict=True):
        end = whole.index(eos) + 1 if eos in whole else len(whole)
        assert row[:end] == whole[: min(end, len(row))]
        assert set(row[end:]) <= {0}
    assert decoder.drawn == sum(row.index(eos) + 1 if eos in row else len(row) for row in stopped.tolist())


def test_the_seed_decides_and_the_global_random_state_is_unchanged():
    model, ids = tiny_model().train(), some_ids(2, 4)
    before = torch.get_rng_state()
    first = generate(model, ids, max_new_tokens=20, seed=1)
    assert torch.equal(first, generate(model, ids, max_new_tokens=20, seed=1))
    assert not torch.equal(first, generate(model, ids, max_new_tokens=20, seed=2))
    assert torch.equal(before, torch.get_rng_state()) and model.training


def test_one_candidate_is_greedy():
    model, ids = tiny_model(), some_ids(2, 4)
    greedy = generate(model, ids, max_new_tokens=10, temperature=0)
    assert torch.equal(greedy, generate(model, ids, max_new_tokens=10, top_k=1))
    assert torch.equal(greedy, generate(model, ids, max_new_tokens=10, top_p=1e-9))


@pytest.mark.parametrize("vocabulary", [1, 127, 128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_equals_argmax_for_ties_masks_and_nan(vocabulary, dtype):
    logits = torch.randint(-9, 9, (40, 3, vocabulary), generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0] = -torch.inf
    logits[1, :, vocabulary // 2 :] = torch.inf
    logits[2, :, vocabulary // 3 :: 2] = torch.nan
    assert torch.equal(largest(logits[:, 1]), logits[:, 1].argmax(-1))


def test_filter_logits_keeps_the_most_likely_tokens():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = lambda **options: (filter_logits(logits, **options) > -torch.inf)[0].tolist()  # noqa: E731
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.5) == [True, False, False, False]  # 0.5 is reached by 0.5
    assert kept(top_p=0.6) == [True, True, False, False]
    assert kept(top_k=3, top_p=0.82) == [True, True, False, False]  # 0.8 of all tokens, 0.84 of the three that remain
    assert kept() == kept(top_k=99, top_p=1.0) == [True] * 4
    assert torch.allclose(filter_logits(logits, temperature=2.0), logits / 2)


def test_draws_follow_the_filtered_distribution():
    model, ids = tiny_model(), some_ids(1, 5)
    with torch.no_grad():
        expected = filter_logits(model(ids).logits[:, -1], 0.7, 5, 0.9).softmax(-1)[0]
    drawn = generate(model, ids.expand(20_000, -1), max_new_tokens=1, temperature=0.7, top_k=5, top_p=0.9)[:, -1]
    shares = torch.bincount(drawn, minlength=VOCAB) / len(drawn)
    assert (shares - expected).abs().max() < 0.02
    assert not shares[expected == 0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least 1 token"),
    ],
)
def test_invalid_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(), **{"input_ids": some_ids(1, 4), **options})


def test_text_in_text_out_and_spelled_special_tokens_stay_text():
    tokenizer = train_tokenizer(["the sun shines on the sea"] * 9, vocab_size=280)
    model = tiny_model(vocab_size=len(tokenizer))
    prompts = ["the sun", "", END_OF_TEXT]
    together = generate_text(model, tokenizer, prompts, max_new_tokens=8, temperature=0)
    alone = [generate_text(model, tokenizer, prompt, max_new_tokens=8, temperature=0) for prompt in prompts]
    assert together == alone and all(isinstance(text, str) for text in together)
    assert alone[1] != alone[2]  # spelled out, the start token is plain text


def test_streamed_text_equals_generated_text_and_no_character_is_cut():
    # A vocabulary of bytes: each of these characters takes several.
    tokenizer = train_tokenizer(["sun"], vocab_size=258)
    model = tiny_model(vocab_size=len(tokenizer)).train()
    prompt, how = "the \u20ac", {"max_new_tokens": 60, "top_k": 40}
    for seed in range(3):
        pieces = [*stream(model, tokenizer, encode(tokenizer, prompt), seed=seed, **how)]
        assert "".join(pieces) == generate_text(model, tokenizer, prompt, seed=seed, **how)
        assert all(pieces) and len(pieces) > 5
    assert model.training and [*stream(model, tokenizer, [], max_new_tokens=0)] == []


def test_a_stream_yields_complete_characters_and_ends_at_eos():
    tokenizer = train_tokenizer(["sun"], vocab_size=258)
    ids = [*encode(tokenizer, "a\u20acb"), tokenizer.eos_token_id, *encode(tokenizer, "no")]

    class Says(torch.nn.Module):  # returns given ids in order, for any input
        def __init__(self):
            super().__init__()
            self.weight, self.said = torch.nn.Parameter(torch.zeros(1)), 0
            self.config = type("config", (), {"max_position_embeddings": 64})

        def forward(self, input_ids, **_):
            logits = torch.nn.functional.one_hot(torch.tensor([[ids[self.said]]]), len(tokenizer)).float()
            self.said += 1
            return type("output", (), {"logits": logits, "past_key_values": None})

    pieces = [*stream(Says(), tokenizer, [0], temperature=0, max_new_tokens=20)]
    assert pieces == ["a", "\u20ac", "b"]
