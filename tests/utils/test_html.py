"""Test text on a page."""

from scratch_gpt.utils.html import page_text


def test_a_carriage_return_ends_a_line_on_a_page():
    assert page_text("a\r\nb\rc\x07") == "a\nb\nc\ufffd"
