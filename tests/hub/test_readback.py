"""Test the readback: ties are accepted and named."""

import pytest
import torch

from scratch_gpt import ScratchGPTForCausalLM
from scratch_gpt.hub.readback import check_outputs, outputs_of
from scratch_gpt.tokenization.tokenizer import load_tokenizer


def test_the_readback_accepts_ties_and_reports_them(run):
    model, tokenizer = ScratchGPTForCausalLM.from_pretrained(run / "model").bfloat16(), load_tokenizer(run / "model")
    assert outputs_of(model, tokenizer).dtype == torch.bfloat16
    first = outputs_of(model, tokenizer).ids[0]
    twin = (first + 1) % model.config.vocab_size
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[twin] = rows[first]
    expected = outputs_of(model, tokenizer)
    other = twin if expected.ids[0] == first else first
    swapped = expected._replace(ids=[other, *expected.ids[1:]])
    line = check_outputs(swapped, model, run / "model")
    assert f"greedy ids, except for ties in bfloat16: id 1 is {other} or {expected.ids[0]}." in line
    far = expected.scores[-1].argmin().item()
    with pytest.raises(ValueError, match=rf"greedy id 32 of 32 is \d+, not {far}\."):
        check_outputs(expected._replace(ids=[*expected.ids[:-1], far]), model, run / "model")
