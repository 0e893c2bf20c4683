"""Test the fast step: it equals the forward of the model, and int8 changes little."""

import pytest
import torch
import torch.nn.functional as F
from compiler import INT8_IN_C, needs_a_compiler
from decoded import max_difference, speculation_options, stepwise_logits
from places import REPO
from tiny import padded, some_ids, tiny_gpt2, tiny_model

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.generation.compiled_step import MAX_COMPILED_ROWS
from scratch_gpt.generation.decoder import FastDecoder, ForwardDecoder, make_decoder
from scratch_gpt.generation.generate import generate
from scratch_gpt.train.optimizers import adamw


def all_at_once(decoder, ids) -> torch.Tensor:
    """Return the logits of all positions except the first, in one step."""
    mask = torch.ones_like(ids)
    decoder.start(ids[:, :1], mask[:, :1], ids.shape[1])
    return decoder.step(ids[:, 1:], mask)


@pytest.fixture(scope="module")
def trained():
    """A model that has learned the characters of our pages a little, and rows (N, T) that it has not seen."""
    text = "".join(page.read_text() for page in sorted((REPO / "training" / "docs").glob("*.md")))
    letters = sorted(set(text))
    ids = torch.tensor([letters.index(letter) for letter in text])
    train, rest = ids[: -len(ids) // 10], ids[-len(ids) // 10 :]
    sizes = {"vocab_size": len(letters), "hidden_size": 64, "initializer_range": 0.02}
    model = tiny_model(attention="sdpa", **sizes).train()
    optimizer = adamw(model, 3e-3, 0.1)
    random = torch.Generator().manual_seed(0)
    for _ in range(100):
        starts = torch.randint(len(train) - 64, (16, 1), generator=random)
        rows = train[starts + torch.arange(64)]
        model(rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), rest[: len(rest) // 64 * 64].view(-1, 64)


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": False}, {"tie_word_embeddings": False}, {"hidden_act": "relu"}]
)
def test_a_step_equals_the_forward_for_any_padding_and_number_of_tokens(changes):
    model = tiny_model(**changes)
    batch = padded([some_ids(1, n, seed=n)[0] for n in (20, 14, 17)])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits[:, 9:]
    for decoder in (make_decoder(model), ForwardDecoder(model)):
        with torch.no_grad():
            assert max_difference(stepwise_logits(decoder, ids, mask, 10), whole) < 1e-4
    with torch.no_grad():
        alone = model(ids[:1]).logits[:, 9:]
        assert max_difference(stepwise_logits(make_decoder(model), ids[:1], mask[:1], 10), alone) < 1e-4


def test_rejected_steps_are_removed_from_the_cache():
    model, ids = tiny_model(), some_ids(1, 12)
    mask = torch.ones_like(ids)
    for decoder in (make_decoder(model), ForwardDecoder(model)):
        with torch.no_grad():
            decoder.start(ids[:, :5], mask[:, :5], 12)
            decoder.step(ids[:, 5:] + 1 - 2 * (ids[:, 5:] > 0), mask)  # a different text
            again = decoder.step(ids[:, 5:], mask)
            assert max_difference(again, model(ids).logits[:, 5:]) < 1e-4


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_scripted_blocks_equal_the_blocks(quantize, monkeypatch):
    model, ids = tiny_model(), some_ids(2, 12)
    assert isinstance(make_decoder(model, quantize).net, torch.jit.ScriptModule)
    by_script = stepwise_logits(make_decoder(model, quantize), ids, torch.ones_like(ids), 5)
    monkeypatch.setattr("scratch_gpt.generation.decoder.scripted", lambda net: net)
    assert torch.equal(stepwise_logits(make_decoder(model, quantize), ids, torch.ones_like(ids), 5), by_script)


@needs_a_compiler
@pytest.mark.parametrize(("quantize", "most"), [*zip((None, "int8"), MAX_COMPILED_ROWS, strict=True)])
def test_the_step_in_c_runs_and_many_rows_use_torch(quantize, most, trained, monkeypatch):
    model, rows = trained
    decoder, calls = make_decoder(model, quantize, compile=True), []
    step = decoder.net.library.step
    monkeypatch.setattr(decoder.net.library, "step", lambda *these: (calls.append(1), step(*these)))
    # The prompt and a full context use torch.
    for count, new, expected in ((1, 60, 48), (most, 2, 49), (most + 1, 2, 49)):
        how = {"max_new_tokens": new, "temperature": 0}
        in_c = generate(decoder, rows[:count, :16], **how)
        assert len(calls) == expected
        if quantize is None:  # where rounding does not decide a token
            assert torch.equal(in_c, generate(model, rows[:count, :16], **how))


def test_greedy_equals_generate_on_a_trained_model(trained):
    model, rows = trained
    prompts = rows[:8, :16]
    ours = generate(model, prompts, max_new_tokens=48, temperature=0)
    stock = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=48, do_sample=False)
    for a, b in zip(ours, stock, strict=True):
        if not torch.equal(a, b):  # the first difference must be between equally likely tokens
            at = int((a != b).nonzero()[0])
            with torch.no_grad():
                two = model(a[None, :at]).logits[0, -1].topk(2).values
            assert two[0] - two[1] < 1e-4


@pytest.mark.parametrize("how", [{"quantize": "int8"}, INT8_IN_C])
def test_int8_of_a_gpt2_file_equals_int8_of_our_file(how, tmp_path):
    stock = tiny_gpt2()
    stock.save_pretrained(tmp_path / "stock")
    ScratchGPTForCausalLM.from_pretrained(tmp_path / "stock").save_pretrained(tmp_path / "ours")
    ids = some_ids(1, 20)
    of_each = [
        all_at_once(make_decoder(ScratchGPTForCausalLM.from_pretrained(tmp_path / name).eval(), **how), ids)
        for name in ("stock", "ours")
    ]
    assert torch.equal(*of_each)
    with torch.no_grad():
        assert (
            max_difference(of_each[0], stock(ids).logits[:, 1:])
            < 0.3
            < max_difference(of_each[0].roll(1, 1), of_each[0])
        )


@pytest.mark.parametrize("how", [{"quantize": "int8"}, INT8_IN_C])
def test_int8_raises_perplexity_by_at_most_one_percent(how, trained):
    model, rows = trained
    losses = []
    for decoder in (ForwardDecoder(model), make_decoder(model, **how)):
        with torch.no_grad():
            logits = all_at_once(decoder, rows)[:, :-1]
        losses.append(F.cross_entropy(logits.flatten(0, 1), rows[:, 2:].flatten()).item())
    assert 1 < losses[0] < 3.2 and losses[0] != losses[1]  # the model is trained, and int8 has an effect
    assert losses[1] - losses[0] < 0.01


@pytest.mark.parametrize("source", ["prompt", "int8", "other"])
def test_guesses_change_no_token(trained, source):
    model, rows = trained
    for chosen in ({"temperature": 0}, {"temperature": 0.8, "top_k": 5, "seed": 3}):
        for decoder in (make_decoder(model), ForwardDecoder(model)):
            plain = generate(model, rows[:1, :16], max_new_tokens=60, **chosen)  # continues past a full context
            guessed = generate(
                decoder, rows[:1, :16], max_new_tokens=60, **speculation_options(source, model), **chosen
            )
            assert torch.equal(plain, guessed)
            assert decoder.accepted <= decoder.guessed and decoder.drawn == 60 and decoder.guessed
            if source != "other":  # the other model may be wrong every time
                assert 0 < decoder.accepted
            if source == "int8":
                assert decoder.accepted > 0.8 * decoder.guessed


def test_the_model_as_its_own_assistant_is_always_right_and_reads_each_token_once(trained, monkeypatch):
    model, rows = trained
    decoder, assistant, read = make_decoder(model), ForwardDecoder(model), []
    for name in ("start", "step"):
        was = getattr(assistant, name)
        monkeypatch.setattr(
            assistant, name, lambda ids, *rest, was=was: (read.append(ids.shape[1]), was(ids, *rest))[1]
        )
    prompt = padded([rows[0, :9], rows[1, :16]])  # the first row is padded
    ids, mask = prompt["input_ids"][:1], prompt["attention_mask"][:1]
    how = {"temperature": 0.9, "seed": 1, "max_new_tokens": 41}
    guessed = generate(decoder, ids, mask, assistant_model=assistant, num_assistant_tokens=4, **how)
    assert torch.equal(guessed, generate(model, ids, mask, **how))
    assert decoder.accepted == decoder.guessed == 32  # the first token is drawn alone, then 4 of 5 are guesses
    assert sum(read) <= ids.shape[1] + 41  # accepted tokens are not read again


def test_generation_with_an_assistant_keeps_the_modes_of_both_models():
    model, assistant = tiny_model().train(), tiny_gpt2().train()
    generate(model, some_ids(1, 4), max_new_tokens=5, assistant_model=assistant)
    assert model.training and assistant.training
    assistant.eval()
    generate(model, some_ids(1, 4), max_new_tokens=5, assistant_model=assistant)
    assert model.training and not assistant.training


def test_only_our_plain_model_gets_the_fast_decoder(monkeypatch):
    model = tiny_model()
    assert type(make_decoder(model)) is FastDecoder
    assert type(make_decoder(tiny_gpt2())) is ForwardDecoder
    with torch.autocast("cpu", torch.bfloat16):
        assert type(make_decoder(model)) is ForwardDecoder
    hook = model.transformer.layers[1].register_forward_hook(lambda *_: None)
    assert type(make_decoder(model)) is ForwardDecoder
    hook.remove()
    assert type(make_decoder(tiny_model(hidden_act="mish"))) is ForwardDecoder
    decoder = make_decoder(model, "int8")
    assert make_decoder(decoder) is decoder
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert type(make_decoder(model)) is ForwardDecoder
    with pytest.raises(ValueError, match="with unchanged layers"):
        make_decoder(model, "int8")
    with pytest.raises(ValueError, match="quantize is 'int3'; it must be 'int8'"):
        make_decoder(tiny_model(), "int3")
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    with pytest.raises(ValueError, match="needs oneDNN, which this torch lacks"):
        make_decoder(tiny_model(), "int8")


def test_the_decoder_uses_the_current_weights_of_a_model():
    model, ids = tiny_model(), some_ids(1, 4)
    before = generate(model, ids, temperature=0)
    with torch.no_grad():
        model.transformer.layers[0].mlp.up_proj.weight.data.neg_()
    after = generate(model, ids, temperature=0)
    assert not torch.equal(before, after)
    assert torch.equal(after, generate(ForwardDecoder(model), ids, temperature=0))


@pytest.mark.parametrize(
    ("rows", "guesses", "message"),
    [
        (1, {"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens is 0"),
        (2, {"prompt_lookup_num_tokens": 3}, "needs a single row, but there are 2"),
        (2, {"assistant_model": tiny_gpt2()}, "assistant_model needs a single row, but there are 2"),
        (1, {"assistant_model": tiny_gpt2(), "num_assistant_tokens": 0}, "num_assistant_tokens is 0"),
        (1, {"assistant_model": tiny_gpt2(vocab_size=7)}, "assistant_model has a vocabulary of 7, but the model"),
        (1, {"assistant_model": tiny_gpt2(), "prompt_lookup_num_tokens": 3}, "both make guesses. Pass one of them"),
    ],
)
def test_invalid_options_of_guesses_are_errors(rows, guesses, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(), some_ids(rows, 4), **guesses)
