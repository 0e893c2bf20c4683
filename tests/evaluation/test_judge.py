"""Test judging: a reply is read or unclear, a key is never saved, and a failing judge is a one-line error."""

import json

import pytest

from scratch_gpt.evaluation.judge import (
    KEY_VARIABLE,
    Judge,
    JudgeError,
    check_judge_url,
    judge_scores,
    read_score,
    score_metrics,
)
from scratch_gpt.evaluation.pairwise import read_verdict


def test_a_judge_scores_each_answer_repeats_times_and_replies_are_kept(server):
    replies = iter(["80", "Score: 60/100", "no idea", "100"])
    server.reply = lambda prompt: next(replies)
    scores = judge_scores(server.judge(), ["p", "q"], ["r", "s"], ["a", "b"], repeats=2)
    assert scores == [[80, 60], [None, 100]]
    assert score_metrics(scores) == ([{"score": 80.0}, {"score": 80.0}], 1)
    assert [(line["row"], line["seed"], line["reply"]) for line in server.kept] == [
        (0, 0, "80"),
        (0, 1, "Score: 60/100"),
        (1, 0, "no idea"),
        (1, 1, "100"),
    ]
    path, _, body = server.seen[0]
    assert path == "/v1/chat/completions" and body["model"] == "wise" and body["seed"] == 0
    assert body["messages"][0]["content"] == server.kept[0]["prompt"]


def test_a_key_is_sent_but_neither_recorded_nor_shown(server, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    server.reply = lambda prompt: "your key is sk-secret, 50"
    server.judge().ask("?")
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in json.dumps(server.kept)
    server.codes = [401]
    with pytest.raises(JudgeError, match="answers 401") as error:
        server.judge().ask("?")
    assert "sk-secret" not in str(error.value)
    monkeypatch.delenv(KEY_VARIABLE)
    server.judge().ask("?")
    assert "Authorization" not in server.seen[-1][1]


def test_white_space_around_a_key_is_removed(server, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, " sk-secret\r\n")
    server.reply = lambda prompt: "your key is sk-secret, 50"
    server.judge().ask("?")
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret" and "sk-secret" not in json.dumps(server.kept)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-one\x07", "sk-\u00e9t\u00e9", "sk-one\u2026"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(server, monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match=f"The key in {KEY_VARIABLE} holds") as error:
        server.judge().ask("?")
    assert "sk-" not in str(error.value) and not server.seen


def test_an_escaped_key_is_not_shown_either(server, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, 'sk-"se\\cret')
    server.reply = lambda prompt: ['no text, but sk-"se\\cret']
    with pytest.raises(JudgeError, match="no chat completion") as error:
        server.judge().ask("?")
    assert "cret" not in str(error.value)


def test_a_busy_judge_is_retried_and_a_broken_one_is_a_one_line_error(server):
    server.codes = [429, 503]
    assert server.judge().ask("?") == "70" and len(server.seen) == 3
    server.codes = [500] * 4
    with pytest.raises(JudgeError, match="answers 500"):
        server.judge().ask("?")
    server.reply = lambda prompt: None
    with pytest.raises(JudgeError, match="gives no JSON"):
        server.judge().ask("?")
    server.reply = lambda prompt: ["no text"]
    with pytest.raises(JudgeError, match="no chat completion"):
        server.judge().ask("?")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{", "cannot be reached"),
        (b"220 mail is served here\r\n", "cannot be reached"),
        (b"HTTP/1.0 401 No\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nwho", "answers 401: .the message breaks off"),
    ],
)
def test_a_truncated_or_invalid_http_response_is_a_one_line_error(server, raw, message):
    server.raw = raw
    with pytest.raises(JudgeError, match=message):
        server.judge().ask("?")


def test_an_unreachable_judge_is_a_one_line_error():
    with pytest.raises(JudgeError, match="127.0.0.1:9/v1/chat/completions cannot be reached") as error:
        Judge("http://127.0.0.1:9/v1", "wise", print).ask("?")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host/v1", "file:///etc/passwd", "host/v1", "http://me:key@host/v1", "http://host/v1?key=3"),
        *("http://[", "http://ho st/v1", "http://host/v 1", "http://host/v1\n"),
    ],
)
def test_invalid_addresses_and_addresses_with_a_key_are_refused_without_showing_them(url):
    with pytest.raises(ValueError, match="judge_url is http") as error:
        check_judge_url(url)
    assert "me:key" not in str(error.value)
    check_judge_url("http://127.0.0.1:8000/v1")


def test_replies_are_read_or_marked_as_unclear():
    scores = {"85": 85, " 100.": 100, "0": 0, "I say 70/100": 70, "7.5": None, "-5": None, "250": None, "": None}
    assert {reply: read_score(reply) for reply in scores} == scores
    verdicts = {"1": 1.0, "2.": 0.0, "Answer 1 is better": 1.0, "0": 0.5, "12": None, "1.5": None, "neither": None}
    assert {reply: read_verdict(reply) for reply in verdicts} == verdicts
