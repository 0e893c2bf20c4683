"""Laws of the fast step: it is the model's forward, guesses change nothing, whole numbers cost next to nothing."""

from copy import deepcopy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from compiler import FP32_IN_C, INT8_IN_C, needs_a_compiler
from places import REPO
from tiny import padded, some_ids, tiny_gpt2, tiny_model
from transformers.activations import ACT2FN

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.generation.compiled_step import ACTIVATIONS, MAX_ROWS, build
from scratch_gpt.generation.decoder import FastDecoder, ForwardDecoder, activate, make_decoder
from scratch_gpt.generation.generate import filter_logits, generate
from scratch_gpt.generation.matmul import Matrix, has_fbgemm, lay_out, multiply, multiply_int8, round_rows
from scratch_gpt.generation.speculative import look_up
from scratch_gpt.train.optimizers import adamw


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def scored(decoder, ids, mask, prompt: int) -> torch.Tensor:
    """The logits of every position from the prompt's last on, three new tokens at a time."""
    logits = [decoder.start(ids[:, :prompt], mask[:, :prompt], ids.shape[1])]
    for at in range(prompt, ids.shape[1], 3):
        logits.append(decoder.step(ids[:, at : at + 3], mask[:, : at + 3]))
    return torch.cat(logits, 1)


def all_at_once(decoder, ids) -> torch.Tensor:
    """The logits of every position but the first, in one step."""
    mask = torch.ones_like(ids)
    decoder.start(ids[:, :1], mask[:, :1], ids.shape[1])
    return decoder.step(ids[:, 1:], mask)


@pytest.fixture(scope="module")
def trained():
    """A model that has learned the README's characters a little, and rows (N, T) that it has not seen."""
    text = (REPO / "README.md").read_text()
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
def test_a_step_is_the_forward_whatever_was_padded_and_however_many_tokens(changes):
    model = tiny_model(**changes)
    batch = padded([some_ids(1, n, seed=n)[0] for n in (20, 14, 17)])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits[:, 9:]
    for decoder in (make_decoder(model), ForwardDecoder(model)):
        with torch.no_grad():
            assert worst(scored(decoder, ids, mask, 10), whole) < 1e-4
    with torch.no_grad():
        alone = model(ids[:1]).logits[:, 9:]
        assert worst(scored(make_decoder(model), ids[:1], mask[:1], 10), alone) < 1e-4


def test_steps_that_are_taken_back_leave_no_trace_in_the_cache():
    model, ids = tiny_model(), some_ids(1, 12)
    mask = torch.ones_like(ids)
    for decoder in (make_decoder(model), ForwardDecoder(model)):
        with torch.no_grad():
            decoder.start(ids[:, :5], mask[:, :5], 12)
            decoder.step(ids[:, 5:] + 1 - 2 * (ids[:, 5:] > 0), mask)  # another text
            again = decoder.step(ids[:, 5:], mask)
            assert worst(again, model(ids).logits[:, 5:]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layout_changes_no_product(dtype):
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(5, 32)
    weight, bias, x = (t.to(dtype) for t in (weight, bias, x))
    plain = F.linear(x.float(), weight.float())
    near = 1e-5 if dtype == torch.float32 else 0.1
    turned = weight.t().contiguous()
    for laid in (lay_out(weight, None), Matrix("rows", weight, None), Matrix("columns", turned, None)):
        assert worst(multiply(x, laid).float(), plain) < near
        assert worst(multiply(x, laid._replace(bias=bias)).float(), plain + bias) < near


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_layout_keeps_the_weights_as_they_were(quantize):
    weight, x = torch.randn(32, 48).t(), torch.randn(5, 32)  # turned
    laid = lay_out(weight, None, quantize)
    before = multiply(x, laid)
    weight.zero_()
    assert torch.equal(multiply(x, laid), before) and before.any()


def test_whole_numbers_keep_nothing_of_the_matrix_they_came_from():
    assert lay_out(torch.randn(48, 32), None, "int8").weight.untyped_storage().nbytes() == 0


def loud_and_quiet() -> torch.Tensor:
    x = torch.randn(20, 32)
    x[1] *= 1000  # a loud neighbour
    x[2] = 0
    x[3], x[4] = x[3].abs(), -x[4].abs()
    return x


@pytest.mark.parametrize("turned", [False, True])
def test_whole_numbers_are_as_near_as_eight_bits_can_be_and_rows_do_not_disturb_each_other(turned):
    weight, bias, x = torch.randn(48, 32), torch.randn(48), loud_and_quiet()
    weight = weight.t().contiguous().t() if turned else weight
    laid = lay_out(weight, bias, "int8")
    together = multiply(x, laid)
    plain = F.linear(x, weight, bias)
    # each factor is off by half a step at most: 1/254 of its row's largest (1/126 where sums are kept in 16 bits)
    bound = 32 * 2 / 126 * weight.abs().amax(1) * x.abs().amax(1, keepdim=True) + 1e-5
    assert ((together - plain).abs() <= bound).all() and torch.equal(together[2], bias)
    assert ((together - plain).norm(dim=1) < 0.02 * (plain - bias).norm(dim=1) + 1e-5).all()
    for fewer, more in ((2, 7), (16, 20)):  # one way to multiply, other neighbours: the same to the bit
        for n in range(more - fewer + 1):
            of = multiply(x[:more], laid)[n : n + fewer]
            assert torch.equal(multiply(x[n : n + fewer], laid), of)
    for n in (1, 2, 7):  # of 20: by the other ways to multiply: the same whole numbers, and fp32's last bits
        for some, known in zip(x.split(n), together.split(n), strict=True):
            assert ((multiply(some, laid) - known).norm(dim=1) <= 1e-5 * known.norm(dim=1)).all()


@pytest.mark.parametrize("top", [255, 127])
def test_rows_are_rounded_as_torch_rounds_each_alone(top):
    x = torch.cat([loud_and_quiet(), 1e-4 * torch.randn(1, 32)])
    codes, step, zero = round_rows(x, top)
    assert codes.min() == 0 and codes.max() == top
    for row, found in zip(x, zip(codes, step, zero, strict=True), strict=True):
        known = torch.quantize_per_tensor_dynamic(row, torch.quint8, top < 255)
        assert torch.equal(found[0], known.int_repr().float()) and found[2] == known.q_zero_point()
        assert found[1].item() == pytest.approx(known.q_scale(), rel=1e-6)


@pytest.mark.skipif(not has_fbgemm(), reason="this torch has no FBGEMM, so that all rows go without")
def test_few_rows_go_without_fbgemm_too():
    weight, bias, x = torch.randn(48, 32), torch.randn(48), loud_and_quiet()
    int8 = lay_out(weight, bias, "int8").int8
    for some in x.split(3):
        without = multiply_int8(some, int8._replace(packed=None))
        assert ((multiply_int8(some, int8) - without).norm(dim=1) <= 1e-5 * without.norm(dim=1)).all()


def test_activations_are_those_of_transformers():
    x = torch.linspace(-5, 5, 1001)
    for name in ACTIVATIONS:
        assert worst(activate(x, name), ACT2FN[name](x)) < 1e-6, name


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_scripted_blocks_are_the_blocks(quantize, monkeypatch):
    model, ids = tiny_model(), some_ids(2, 12)
    assert isinstance(make_decoder(model, quantize).net, torch.jit.ScriptModule)
    by_script = scored(make_decoder(model, quantize), ids, torch.ones_like(ids), 5)
    monkeypatch.setattr("scratch_gpt.generation.decoder.scripted", lambda net: net)
    assert torch.equal(scored(make_decoder(model, quantize), ids, torch.ones_like(ids), 5), by_script)


@needs_a_compiler
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": False}, {"tie_word_embeddings": False, "vocab_size": 101, "intermediate_size": 48}]
    + [{"hidden_act": name} for name in ACTIVATIONS],
)
def test_the_step_in_c_is_the_step_by_torch(changes, quantize):
    model = tiny_model(**changes)
    batch = padded([some_ids(1, n, seed=n)[0] for n in (20, 14, 17)])  # 9 rows at a time: 4, 4 and 1
    decoders = [make_decoder(model, quantize, compile) for compile in (False, True)]
    for ids, mask in ((batch["input_ids"], batch["attention_mask"]), (some_ids(1, 20), torch.ones(1, 20))):
        by_torch, in_c = (scored(decoder, ids, mask, 10) for decoder in decoders)
        with torch.no_grad():
            exact = model(ids, attention_mask=mask).logits[:, 9:]
        if quantize is None:
            assert worst(in_c, by_torch) < 1e-5 and worst(in_c, exact) < 1e-5
        else:  # fp32's last bits may round a number to its neighbour, whose row is then another
            assert (in_c - by_torch).abs().median() < 1e-5 < 1e-3 < (in_c - exact).abs().median()
            assert worst(in_c, by_torch) < 0.1


@needs_a_compiler
def test_the_step_in_c_reads_a_gpt2_files_matrices_too(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    model, ids = ScratchGPTForCausalLM.from_pretrained(tmp_path).eval(), some_ids(1, 20)
    with torch.no_grad():
        assert (
            worst(scored(make_decoder(model, compile=True), ids, torch.ones_like(ids), 10), model(ids).logits[:, 9:])
            < 1e-4
        )


@needs_a_compiler
def test_the_step_in_c_keeps_fp32_where_the_model_is_in_bf16():
    model = tiny_model().bfloat16()
    in_c, exact = make_decoder(model, "int8", compile=True), make_decoder(deepcopy(model).float(), "int8")
    in_c.start(some_ids(2, 19), torch.ones(2, 19), 20)
    x = torch.randn(2, 32).bfloat16()
    with torch.inference_mode():
        logits = in_c.net(x, in_c.key_values, 19, None, False)
        expected = exact.net(x.float(), in_c.key_values, 19, None, False)
    assert logits.dtype == torch.float32 and (logits - expected).abs().median() < 1e-5 < logits.std()


@needs_a_compiler
def test_the_step_in_c_leaves_out_what_is_hidden_by_far():
    model, long = tiny_model(), some_ids(1, 60)
    alone = some_ids(1, 9, seed=1)
    batch = padded([long[0], alone[0]])
    of_both = scored(make_decoder(model, compile=True), batch["input_ids"], batch["attention_mask"], 57)[1]
    assert worst(of_both, scored(make_decoder(model), alone, torch.ones_like(alone), 6)[0]) < 1e-5


@needs_a_compiler
@pytest.mark.parametrize(("quantize", "most"), [*zip((None, "int8"), MAX_ROWS, strict=True)])
def test_the_step_in_c_is_what_runs_and_many_rows_go_around_it(quantize, most, trained, monkeypatch):
    model, rows = trained
    decoder, calls = make_decoder(model, quantize, compile=True), []
    step = decoder.net.library.step
    monkeypatch.setattr(decoder.net.library, "step", lambda *these: (calls.append(1), step(*these)))
    for count, new, expected in ((1, 60, 48), (most, 2, 49), (most + 1, 2, 49)):  # the prompt, and a full context, not
        how = {"max_new_tokens": new, "temperature": 0}
        in_c = generate(decoder, rows[:count, :16], **how)
        assert len(calls) == expected
        if quantize is None:  # where rounding decides no token
            assert torch.equal(in_c, generate(model, rows[:count, :16], **how))


@pytest.mark.parametrize("how", [{"quantize": None}, {"quantize": "int8"}, FP32_IN_C, INT8_IN_C])
def test_a_step_beyond_its_cache_is_an_error(how):
    decoder, ids = make_decoder(tiny_model(), **how), some_ids(1, 8)
    decoder.start(ids[:, :6], torch.ones(1, 6), 7)
    decoder.step(ids[:, 6:7], torch.ones(1, 7))
    with pytest.raises(ValueError, match="was started for 7 tokens, and here are 8"):
        decoder.step(ids[:, 7:8], torch.ones(1, 8))


@pytest.mark.parametrize("how", [FP32_IN_C, INT8_IN_C])
@pytest.mark.parametrize("nothing", [torch.nan, torch.inf])
def test_the_step_in_c_hides_no_model_that_has_diverged(how, nothing):
    model, ids = tiny_model(), some_ids(1, 8)
    with torch.no_grad():
        model.transformer.layers[1].mlp.down_proj.bias[3] = nothing
    decoder = make_decoder(model, **how)
    decoder.start(ids[:, :6], torch.ones(1, 6), 8)
    assert not decoder.step(ids[:, 6:7], torch.ones(1, 7)).isfinite().any()


def test_what_cannot_be_compiled_is_one_clear_line(monkeypatch):
    with pytest.raises(
        ValueError, match=r"in fp32 or int8 on a CPU, and this model is in torch.bfloat16 on cpu: give"
    ):
        make_decoder(tiny_model().bfloat16(), compile=True)
    with pytest.raises(ValueError, match="multiples of 16, and these are 32 and, in the MLP, 100: give"):
        make_decoder(tiny_model(intermediate_size=100), compile=True)
    with pytest.raises(
        ValueError, match="compile=True is of our own model as it was saved, and this is a GPT2LM.*leave compile out"
    ):
        make_decoder(tiny_gpt2(), compile=True)
    build.cache_clear()
    for compiler, said in (
        ("no-such-compiler -O1", "no-such-compiler -O1 is none here"),
        ("sh -c 'echo x.c: error: it is odd >&2; exit 3'", "ends with x.c: error: it is odd"),
        (
            "sh -c 'for word; do [ \"$last\" = -o ] && echo x > $word; last=$word; done' -",
            "What sh -c .* built for compile does not load: .*",
        ),
        ("sh -c 'exit 3'", "ends with status 3"),
    ):
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(ValueError, match=f"{said}: put one with OpenMP"):
            make_decoder(tiny_model(), "int8", compile=True)


def test_greedy_is_generate_on_a_trained_model(trained):
    model, rows = trained
    prompts = rows[:8, :16]
    ours = generate(model, prompts, max_new_tokens=48, temperature=0)
    stock = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=48, do_sample=False)
    for a, b in zip(ours, stock, strict=True):
        if not torch.equal(a, b):  # then at the first difference two tokens are as likely
            at = int((a != b).nonzero()[0])
            with torch.no_grad():
                two = model(a[None, :at]).logits[0, -1].topk(2).values
            assert two[0] - two[1] < 1e-4


@pytest.mark.parametrize("how", [{"quantize": "int8"}, INT8_IN_C])
def test_int8_of_a_gpt2_file_is_that_of_our_own(how, tmp_path):
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
        assert worst(of_each[0], stock(ids).logits[:, 1:]) < 0.3 < worst(of_each[0].roll(1, 1), of_each[0])


@pytest.mark.parametrize("how", [{"quantize": "int8"}, INT8_IN_C])
def test_int8_costs_at_most_one_percent_of_perplexity(how, trained):
    model, rows = trained
    losses = []
    for decoder in (ForwardDecoder(model), make_decoder(model, **how)):
        with torch.no_grad():
            logits = all_at_once(decoder, rows)[:, :-1]
        losses.append(F.cross_entropy(logits.flatten(0, 1), rows[:, 2:].flatten()).item())
    assert 1 < losses[0] < 3.2 and losses[0] != losses[1]  # it has learned something, and it is rounded
    assert losses[1] - losses[0] < 0.01


def guessing(source: str, model) -> dict:
    """`generate`'s options for guesses from the prompt, by the model in int8, or by a stranger of its vocabulary."""
    if source == "prompt":
        return {"prompt_lookup_num_tokens": 5}
    if source == "int8":
        return {"assistant_model": make_decoder(model, "int8")}
    return {"assistant_model": tiny_gpt2(vocab_size=model.config.vocab_size), "num_assistant_tokens": 2}


@pytest.mark.parametrize("source", ["prompt", "int8", "stranger"])
def test_guesses_change_no_token(trained, source):
    model, rows = trained
    for chosen in ({"temperature": 0}, {"temperature": 0.8, "top_k": 5, "seed": 3}):
        for decoder in (make_decoder(model), ForwardDecoder(model)):
            plain = generate(model, rows[:1, :16], max_new_tokens=60, **chosen)  # on, where the context is full
            guessed = generate(decoder, rows[:1, :16], max_new_tokens=60, **guessing(source, model), **chosen)
            assert torch.equal(plain, guessed)
            assert decoder.accepted <= decoder.guessed and decoder.drawn == 60 and decoder.guessed
            if source != "stranger":  # who may be wrong each time
                assert 0 < decoder.accepted
            if source == "int8":
                assert decoder.accepted > 0.8 * decoder.guessed


@pytest.mark.parametrize("source", ["prompt", "int8", "stranger"])
def test_guessed_ahead_tokens_follow_the_models_distribution(source):
    model = tiny_model(vocab_size=3, initializer_range=0.05)
    ids, how = torch.tensor([[0, 1, 2, 0, 1, 2, 0]]), {"temperature": 1.3, "top_k": 2}
    expected = {}
    for pair in product(range(3), repeat=2):
        whole = torch.cat([ids, torch.tensor([pair])], 1)
        with torch.no_grad():
            p = filter_logits(model(whole).logits[0, -3:-1], **how).softmax(-1)
        expected[pair] = (p[0, pair[0]] * p[1, pair[1]]).item()
    decoder, n, counts = make_decoder(model), 600, dict.fromkeys(expected, 0)
    how |= guessing(source, model)
    for seed in range(n):
        new = generate(decoder, ids, max_new_tokens=4, seed=seed, **how)[0, 7:9]
        counts[tuple(new.tolist())] += 1
    held = decoder.accepted / decoder.guessed
    assert 0.1 < held and (held < 0.9 or source == "int8")  # whose guesses all hold here
    for pair, share in expected.items():
        assert abs(counts[pair] / n - share) < 4 * (share * (1 - share) / n) ** 0.5 + 1e-9, pair


def test_an_assistant_that_is_the_model_itself_is_always_right_and_reads_its_text_once(trained, monkeypatch):
    model, rows = trained
    decoder, assistant, read = make_decoder(model), ForwardDecoder(model), []
    for name in ("start", "step"):
        was = getattr(assistant, name)
        monkeypatch.setattr(
            assistant, name, lambda ids, *rest, was=was: (read.append(ids.shape[1]), was(ids, *rest))[1]
        )
    prompt = padded([rows[0, :9], rows[1, :16]])  # the first is padded
    ids, mask = prompt["input_ids"][:1], prompt["attention_mask"][:1]
    how = {"temperature": 0.9, "seed": 1, "max_new_tokens": 41}
    guessed = generate(decoder, ids, mask, assistant_model=assistant, num_assistant_tokens=4, **how)
    assert torch.equal(guessed, generate(model, ids, mask, **how))
    assert decoder.accepted == decoder.guessed == 32  # the first is drawn by itself, then 4 of each 5 were guessed
    assert sum(read) <= ids.shape[1] + 41  # what was accepted is not read again


def test_generation_with_an_assistant_leaves_both_models_modes():
    model, assistant = tiny_model().train(), tiny_gpt2().train()
    generate(model, some_ids(1, 4), max_new_tokens=5, assistant_model=assistant)
    assert model.training and assistant.training
    assistant.eval()
    generate(model, some_ids(1, 4), max_new_tokens=5, assistant_model=assistant)
    assert model.training and not assistant.training


def test_a_guess_is_what_followed_the_longest_end_the_last_time():
    guess = lambda *ids, most=2: look_up(torch.tensor([ids]), most)[0].tolist()  # noqa: E731
    assert guess(1, 2, 3, 9, 8, 2, 3, 7, 1, 2, 3) == [9, 8]  # three tokens, further back than two
    assert guess(5, 1, 5, 2, 5) == [2, 5]  # the last time
    assert guess(5, 1, 5, 2, 5, most=1) == [2]
    assert guess(4, 4) == [4] and guess(1, 2, 3) == guess(1) == guess(5, 5, most=0) == []


def test_only_our_own_plain_model_is_fast(monkeypatch):
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
    with pytest.raises(ValueError, match="something around its layers"):
        make_decoder(model, "int8")
    with pytest.raises(ValueError, match="quantize is 'int3'; it is int8"):
        make_decoder(tiny_model(), "int3")
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    with pytest.raises(ValueError, match="multiplies by oneDNN, and this torch has none"):
        make_decoder(tiny_model(), "int8")


def test_a_model_that_learns_on_is_decoded_as_it_is_now():
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
        (2, {"prompt_lookup_num_tokens": 3}, "guesses for one row, and here are 2"),
        (2, {"assistant_model": tiny_gpt2()}, "assistant_model guesses for one row, and here are 2"),
        (1, {"assistant_model": tiny_gpt2(), "num_assistant_tokens": 0}, "num_assistant_tokens is 0"),
        (1, {"assistant_model": tiny_gpt2(vocab_size=7)}, "assistant_model has a vocabulary of 7, and the model"),
        (1, {"assistant_model": tiny_gpt2(), "prompt_lookup_num_tokens": 3}, "both guess: give one of them"),
    ],
)
def test_guesses_that_cannot_be_are_errors(rows, guesses, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(), some_ids(rows, 4), **guesses)
