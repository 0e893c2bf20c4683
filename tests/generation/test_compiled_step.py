"""Test the compiled step: it equals torch's step, in fp32, within its cache."""

from copy import deepcopy

import pytest
import torch
from compiler import FP32_IN_C, INT8_IN_C, needs_a_compiler
from decoded import max_difference, stepwise_logits
from tiny import padded, some_ids, tiny_gpt2, tiny_model
from transformers.activations import ACT2FN

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.generation.compiled_step import ACTIVATIONS, build_step
from scratch_gpt.generation.decoder import activate, make_decoder


def test_activations_equal_those_of_transformers():
    x = torch.linspace(-5, 5, 1001)
    for name in ACTIVATIONS:
        assert max_difference(activate(x, name), ACT2FN[name](x)) < 1e-6, name


@needs_a_compiler
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": False}, {"tie_word_embeddings": False, "vocab_size": 101, "intermediate_size": 48}]
    + [{"hidden_act": name} for name in ACTIVATIONS],
)
def test_the_step_in_c_equals_the_step_in_torch(changes, quantize):
    model = tiny_model(**changes)
    batch = padded([some_ids(1, n, seed=n)[0] for n in (20, 14, 17)])  # 9 rows at a time: 4, 4 and 1
    decoders = [make_decoder(model, quantize, compile) for compile in (False, True)]
    for ids, mask in ((batch["input_ids"], batch["attention_mask"]), (some_ids(1, 20), torch.ones(1, 20))):
        by_torch, in_c = (stepwise_logits(decoder, ids, mask, 10) for decoder in decoders)
        with torch.no_grad():
            exact = model(ids, attention_mask=mask).logits[:, 9:]
        if quantize is None:
            assert max_difference(in_c, by_torch) < 1e-5 and max_difference(in_c, exact) < 1e-5
        else:  # fp32 rounding may change an int8 code by one, and with it the row
            assert (in_c - by_torch).abs().median() < 1e-5 < 1e-3 < (in_c - exact).abs().median()
            assert max_difference(in_c, by_torch) < 0.1


@needs_a_compiler
def test_the_step_in_c_reads_the_matrices_of_gpt2_files(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    model, ids = ScratchGPTForCausalLM.from_pretrained(tmp_path).eval(), some_ids(1, 20)
    with torch.no_grad():
        assert (
            max_difference(
                stepwise_logits(make_decoder(model, compile=True), ids, torch.ones_like(ids), 10),
                model(ids).logits[:, 9:],
            )
            < 1e-4
        )


@needs_a_compiler
def test_the_step_in_c_uses_fp32_for_a_bf16_model():
    model = tiny_model().bfloat16()
    in_c, exact = make_decoder(model, "int8", compile=True), make_decoder(deepcopy(model).float(), "int8")
    in_c.start(some_ids(2, 19), torch.ones(2, 19), 20)
    x = torch.randn(2, 32).bfloat16()
    with torch.inference_mode():
        logits = in_c.net(x, in_c.key_values, 19, None, False)
        expected = exact.net(x.float(), in_c.key_values, 19, None, False)
    assert logits.dtype == torch.float32 and (logits - expected).abs().median() < 1e-5 < logits.std()


@needs_a_compiler
def test_the_step_in_c_skips_masked_positions():
    model, long = tiny_model(), some_ids(1, 60)
    alone = some_ids(1, 9, seed=1)
    batch = padded([long[0], alone[0]])
    of_both = stepwise_logits(make_decoder(model, compile=True), batch["input_ids"], batch["attention_mask"], 57)[1]
    assert max_difference(of_both, stepwise_logits(make_decoder(model), alone, torch.ones_like(alone), 6)[0]) < 1e-5


@pytest.mark.parametrize("how", [{"quantize": None}, {"quantize": "int8"}, FP32_IN_C, INT8_IN_C])
def test_a_step_beyond_its_cache_is_an_error(how):
    decoder, ids = make_decoder(tiny_model(), **how), some_ids(1, 8)
    decoder.start(ids[:, :6], torch.ones(1, 6), 7)
    decoder.step(ids[:, 6:7], torch.ones(1, 7))
    with pytest.raises(ValueError, match="was started for 7 tokens, but the text has 8"):
        decoder.step(ids[:, 7:8], torch.ones(1, 8))


@pytest.mark.parametrize("how", [FP32_IN_C, INT8_IN_C])
@pytest.mark.parametrize("nothing", [torch.nan, torch.inf])
def test_the_step_in_c_does_not_hide_a_diverged_model(how, nothing):
    model, ids = tiny_model(), some_ids(1, 8)
    with torch.no_grad():
        model.transformer.layers[1].mlp.down_proj.bias[3] = nothing
    decoder = make_decoder(model, **how)
    decoder.start(ids[:, :6], torch.ones(1, 6), 8)
    assert not decoder.step(ids[:, 6:7], torch.ones(1, 7)).isfinite().any()


def test_a_model_that_cannot_be_compiled_is_a_one_line_error(monkeypatch):
    with pytest.raises(ValueError, match=r"fp32 and int8 on a CPU, but this model is in torch.bfloat16 on cpu. Pass"):
        make_decoder(tiny_model().bfloat16(), compile=True)
    with pytest.raises(ValueError, match="multiples of 16, but the model's width is 32 and the MLP's 100. Pass"):
        make_decoder(tiny_model(intermediate_size=100), compile=True)
    with pytest.raises(
        ValueError, match="compile=True needs our own model as it was saved, .*This GPT2LM.*remove compile"
    ):
        make_decoder(tiny_gpt2(), compile=True)
    build_step.cache_clear()
    for compiler, said in (
        ("no-such-compiler -O1", "no-such-compiler -O1 cannot be run"),
        ("sh -c 'echo x.c: error: it is odd >&2; exit 3'", "ended with x.c: error: it is odd"),
        (
            "sh -c 'for word; do [ \"$last\" = -o ] && echo x > $word; last=$word; done' -",
            "The library that sh -c .* built cannot be loaded: .*",
        ),
        ("sh -c 'exit 3'", "ended with status 3"),
    ):
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(ValueError, match=rf"{said}\. Set \$CC to one with OpenMP"):
            make_decoder(tiny_model(), "int8", compile=True)
