"""Test licenses: a license is one of the Hub's, or has a name and a link."""

import pytest
from card_run import card_of
from huggingface_hub import ModelCard

from scratch_gpt.hub.card import merge_cards
from scratch_gpt.hub.licenses import check_license


def test_a_license_is_on_the_hubs_list_or_has_a_name_and_a_link(runs):
    check_license(None), check_license("apache-2.0"), check_license("other", "my-license-1.0", "LICENSE")
    for given, message in (
        (("MIT",), r"license is 'MIT', .*did you mean mit"),
        (("<b>",), "not an identifier of the Hub's list"),
        (("mit", "x", None), "Remove them"),
        ((None, "x", "LICENSE"), "not an identifier"),
        (("other",), "license_name is None"),
        (("other", "My License", "LICENSE"), "license_name is 'My License'"),
        (("other", "mine", "javascript:alert(1)"), "license_link is 'javascript"),
        (("other", "mine", None), "license_link is None"),
    ):
        with pytest.raises(ValueError, match=message):
            check_license(*given)
    terms = {"license": "other", "license_name": "mine-1.0", "license_link": "https://example.org/mine"}
    card = card_of(runs["pretrain"], **terms)
    found = ModelCard(card).data
    assert (found.license, found.license_name, found.license_link) == ("other", "mine-1.0", "https://example.org/mine")
    assert "Weights: mine-1.0, https://example.org/mine." in card
    other = merge_cards(card, card_of(runs["pretrain"], license="mit"))
    assert "license: mit\n" in other and "license_name" not in other and "license_link" not in other
    assert "license_name: mine-1.0\n" in merge_cards(card, card_of(runs["pretrain"]))
