"""Test speculative decoding: the distribution is the model's, lookups use the last repetition."""

from itertools import product

import pytest
import torch
from decoded import speculation_options
from tiny import tiny_model

from scratch_gpt.generation.decoder import make_decoder
from scratch_gpt.generation.generate import filter_logits, generate
from scratch_gpt.generation.speculative import look_up


@pytest.mark.parametrize("source", ["prompt", "int8", "other"])
def test_guessed_tokens_follow_the_models_distribution(source):
    model = tiny_model(vocab_size=3, initializer_range=0.05)
    ids, how = torch.tensor([[0, 1, 2, 0, 1, 2, 0]]), {"temperature": 1.3, "top_k": 2}
    expected = {}
    for pair in product(range(3), repeat=2):
        whole = torch.cat([ids, torch.tensor([pair])], 1)
        with torch.no_grad():
            p = filter_logits(model(whole).logits[0, -3:-1], **how).softmax(-1)
        expected[pair] = (p[0, pair[0]] * p[1, pair[1]]).item()
    decoder, n, counts = make_decoder(model), 600, dict.fromkeys(expected, 0)
    how |= speculation_options(source, model)
    for seed in range(n):
        new = generate(decoder, ids, max_new_tokens=4, seed=seed, **how)[0, 7:9]
        counts[tuple(new.tolist())] += 1
    held = decoder.accepted / decoder.guessed
    assert 0.1 < held and (held < 0.9 or source == "int8")  # all of its guesses are accepted here
    for pair, share in expected.items():
        assert abs(counts[pair] / n - share) < 4 * (share * (1 - share) / n) ** 0.5 + 1e-9, pair


def test_prompt_lookup_guesses_what_followed_the_longest_repeated_suffix():
    guess = lambda *ids, most=2: look_up(torch.tensor([ids]), most)[0].tolist()  # noqa: E731
    # A match of three tokens is preferred to a later one of two.
    assert guess(1, 2, 3, 9, 8, 2, 3, 7, 1, 2, 3) == [9, 8]
    assert guess(5, 1, 5, 2, 5) == [2, 5]  # the last occurrence
    assert guess(5, 1, 5, 2, 5, most=1) == [2]
    assert guess(4, 4) == [4] and guess(1, 2, 3) == guess(1) == guess(5, 5, most=0) == []
