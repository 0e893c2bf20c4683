"""Test the page of answers: no scripts, no requests."""

import re

from scratch_gpt.evaluation.answers_page import Answered, answers_page


def test_a_page_has_no_scripts_or_requests_and_works_on_phones_and_in_dark_mode():
    evil = "<script>alert(1)</script>\x00\"'<img src=http://x>"
    page = answers_page(evil, [Answered(evil, evil, {evil: evil}, {evil: evil})], evil)
    assert page.count("<script") == 0 and "<img" not in page and "\x00" not in page
    assert "default-src 'none'" in page and "width=device-width" in page and "prefers-color-scheme: dark" in page
    assert not re.search(r"(src|href)=", page.replace("src=http://x&gt;", ""))
