"""Test the Space in a headless Chromium: it responds to a user's input with numbers of the model."""

import importlib
import os
import re
import sys
import time

import pytest
import torch
import yaml
from bad_input import fails
from browser import Browser, find_chromium
from places import REPO
from tiny import tiny_model

from scratch_gpt import ScratchGPTForSequenceClassification, generate_text
from scratch_gpt.analysis import inspection
from scratch_gpt.tokenization.chat_templates import FORMATS
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.tokenization.training import train_tokenizer


SPACE = REPO / "hub_card" / "space"
READY = "document.querySelectorAll('#near b').length > 0"
LONG = "the sun shines on the sea " * 30


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[space]"')
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    sys.path.insert(0, str(SPACE))
    yield importlib.import_module("app")
    sys.path.remove(str(SPACE))


@pytest.fixture(scope="module")
def subjects():
    tokenizer = train_tokenizer(["the sun shines on the sea"] * 9, vocab_size=280)
    talks = train_tokenizer(["the sun shines on the sea"] * 9, vocab_size=280)
    talks.chat_template = FORMATS["alpaca"].template
    sizes = {"vocab_size": len(tokenizer)}
    labels = {"num_labels": 2, "id2label": {0: "land", 1: "sea"}, "label2id": {"land": 0, "sea": 1}}
    return {
        "base": inspection.Subject(tiny_model(**sizes), tokenizer, "base"),
        "chat": inspection.Subject(tiny_model(max_position_embeddings=128, **sizes), talks, "chat"),
        "classifier": inspection.Subject(
            tiny_model(ScratchGPTForSequenceClassification, **labels, **sizes), tokenizer, "classifier"
        ),
    }


@pytest.fixture(scope="module")
def browser():
    binary = find_chromium()
    if binary is None:
        pytest.skip("Chromium is not installed")
    browser = Browser(binary)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def served(app, subjects):
    """Serve a page for each kind of model; return their addresses."""
    pages = {kind: app.build(subject, f"a {kind}") for kind, subject in subjects.items()}
    urls = {kind: app.launch(page, prevent_thread_lock=True, quiet=True) for kind, page in pages.items()}
    yield urls
    for page in pages.values():
        page.close(verbose=False)


@pytest.fixture
def base(browser, served):
    """Open the base model's page; after the test, check for errors and for requests to other servers."""
    return opened(browser, served["base"])


def opened(browser, url, **how):
    browser.open(url, **how)
    browser.until(READY)
    return browser


@pytest.fixture(autouse=True)
def nothing_wrong(request):
    yield
    if "browser" in request.fixturenames:
        browser = request.getfixturevalue("browser")
        assert browser.errors == []
        outside = [  # the page only makes requests to its server
            url
            for url in browser.requests
            if not re.match(r"(http|ws)://(127\.0\.0\.1|localhost):|data:|about:|blob:", url)
        ]
        assert outside == [] and any("127.0.0.1" in url for url in browser.requests)


def text_of(browser, selector: str) -> str:
    return browser.value(f"document.querySelector('{selector}').innerText")


def bars(browser, selector: str) -> list[str]:
    return browser.value(f"[...document.querySelectorAll('{selector} .bars span')].map(e => e.textContent)")


def test_typing_shows_the_tokens_and_the_models_predictions(base, subjects):
    model, tokenizer, _ = subjects["base"]
    base.write("#text textarea", "the sea shines")
    ids = encode(tokenizer, "the sea shines")
    found = "[...document.querySelectorAll('#tokens small')].map(e => e.textContent).join()"
    base.until(f"{found} == '{','.join(map(str, ids))}'")
    hidden = inspection.look(model, ids).hidden
    after = inspection.next_probabilities(model, hidden, 0.8, 50)
    best = inspection.next_probabilities(model, hidden).topk(15).indices
    assert bars(base, "#next") == [f"{p:.1%}" for p in after[best]]
    shown = base.value(
        "[...document.querySelectorAll('#lens tr')].map(r => [...r.querySelectorAll('small')].map(e => e.textContent))"
    )
    p, _ = inspection.logit_lens(model, hidden)
    assert shown[1:] == [[f"{value:.0%}" for value in row] for row in reversed(p[..., 0].tolist())]
    cosines, _ = inspection.neighbors(model, ids[-1], 15)
    base.until(f"document.querySelector('#near .bars span').textContent == '{cosines[0]:.3f}'")
    assert bars(base, "#near") == [f"{cosine:.3f}" for cosine in cosines]


def test_sliders_change_the_bars_and_the_map(base, subjects):
    slider = "document.querySelector('input[type=range][aria-label*=temperature]')"
    before = bars(base, "#next")
    base.value(f"{slider}.focus()")
    base.key("Home", 36)
    base.until("document.querySelector('#next .bars span').textContent == '100.0%'")
    assert bars(base, "#next")[1:] == ["0.0%"] * 14 and before[0] != "100.0%"

    base.value("document.querySelector('#layer input[type=range]').focus()")
    base.key("Home", 36)
    base.until("document.querySelector('#map').innerText.includes('Layer 1, head 1.')")
    base.value("document.querySelector('#head input[type=range]').focus()")
    base.key("End", 35)
    base.until("document.querySelector('#map').innerText.includes('Layer 1, head 4.')")
    model, tokenizer, _ = subjects["base"]
    ids = encode(tokenizer, base.value("document.querySelector('#text textarea').value"))[:40]
    weights = inspection.look(model, ids).attention[0, 3]
    said = base.value("[...document.querySelectorAll('#map title')].map(e => e.textContent.split(': ').pop())")
    assert said == [f"{weight:.1%}" for i in range(len(ids)) for weight in weights[i, : i + 1]]
    assert base.value("document.querySelectorAll('#heads img').length") == 8
    assert base.value("document.querySelector('#heads .on').alt") == "layer 1, head 4"


def test_empty_texts_and_texts_over_the_context_are_reported(base, subjects):
    base.write("#text textarea", "")
    base.until("document.querySelector('#tokens').innerText.includes('The text is empty')")
    for part in ("next", "map", "lens"):
        assert "The text is empty" in text_of(base, f"#{part}")
    base.write("#text textarea", LONG)
    count = len(encode(subjects["base"].tokenizer, LONG))
    base.until("document.querySelector('#tokens').innerText.includes('too long')")
    told = f"it has {count} tokens, and the model's context is 64. The first {count - 64} were cut."
    assert told in text_of(base, "#tokens")
    assert base.value("document.querySelectorAll('#tokens .cut').length") == count - 64
    assert "Only the first 40 of 64 tokens are drawn." in text_of(base, "#map")


def test_a_phone_scrolls_vertically_only_and_dark_mode_is_dark(browser, served):
    opened(browser, served["base"], width=390, height=844, theme="dark")
    browser.write("#text textarea", LONG)
    browser.until("document.querySelector('#tokens').innerText.includes('too long')")
    assert browser.value("document.documentElement.scrollWidth") == 390
    for part in ("tokens", "next", "map", "heads", "lens", "near"):
        box = browser.value(f"(r => [r.left, r.right])(document.querySelector('#{part}').getBoundingClientRect())")
        assert 0 <= box[0] and box[1] <= 390, part
    colors = browser.value(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.look')).color]"
    )
    paper, ink = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors)
    assert paper < 150 and ink > 500


def test_the_page_streams_the_models_text_and_stops_on_request(base, app, subjects, monkeypatch):
    model, tokenizer, _ = subjects["base"]
    written = "document.querySelector('#written textarea').value"
    text = base.value("document.querySelector('#text textarea').value")
    expected = text + generate_text(model, tokenizer, text, max_new_tokens=60, temperature=0.8, top_k=50, top_p=1.0)
    base.click("document.querySelector('#start')")
    base.until(f"{written}.length >= {len(expected)}")
    assert base.value(written) == expected

    def forever(*_, **__):
        while True:
            time.sleep(0.02)
            yield "more "

    monkeypatch.setattr(app, "stream", forever)
    base.click("document.querySelector('#start')")
    base.until(f"{written}.split('more').length > 3")
    base.click("document.querySelector('#stop')")
    still = f"new Promise(then => {{ let was = {written}; setTimeout(() => then(was == {written}), 400) }})"
    base.until(still, 10)


def test_a_classifier_shows_its_classes(browser, served, subjects):
    opened(browser, served["classifier"])
    browser.write("#text textarea", "the sea")
    model, tokenizer, _ = subjects["classifier"]
    browser.until("document.querySelectorAll('#tokens small').length < 10")
    with torch.no_grad():
        p = model(torch.tensor([encode(tokenizer, "the sea")])).logits[0].softmax(-1)
    assert bars(browser, "#classes") == [f"{value:.1%}" for value in p.sort(descending=True).values]
    assert {"land", "sea"} == set(
        browser.value("[...document.querySelectorAll('#classes b')].map(e => e.textContent)")
    )
    assert browser.value("!document.querySelector('#next') && !document.querySelector('#start')")


def test_typed_text_never_becomes_html(base):
    base.write("#text textarea", "<img src=http://example.com/a.png onerror=alert(1)>")
    base.until("document.querySelector('#tokens').innerText.includes('<')")
    assert base.value("[...document.querySelectorAll('.look img')].every(e => e.src.startsWith('data:'))")


def test_a_chat_keeps_its_history_and_escapes_html(browser, served, app, monkeypatch):
    asked = []

    def answers(model, tokenizer, ids, *_, **__):
        asked.append(tokenizer.decode(ids))
        yield from ("the ", "sun ", f"<b>{len(asked)}</b> <img src=http://example.com/a.png>")

    monkeypatch.setattr(app, "stream", answers)
    opened(browser, served["chat"])
    for n, said in enumerate(("well?", "and now?"), start=1):
        browser.write("#said textarea", said)
        browser.click("document.querySelector('#start')")
        browser.until(f"document.querySelector('#chat').innerText.includes('the sun <b>{n}</b>')")
    assert asked[0].count("### Response") == 1 and "the sun <b>1</b>" in asked[1] and "and now?" in asked[1]


# --- Without a browser --------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_a_model_is_a_one_line_error(app, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("MODEL", raising=False)
    fails([tmp_path], "is not a model folder: it has no config.json", capsys, app.main)
    fails([tmp_path / "absent"], "is not a folder", capsys, app.main)
    fails([], "Give one model folder", capsys, app.main)
    fails([tmp_path, tmp_path], "Give one model folder", capsys, app.main)


def test_on_the_hub_the_model_is_named_by_the_variable_or_the_card(app, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **how: asked.append((repo, how)) or tmp_path)
    monkeypatch.setenv("MODEL", "user/name@abc")
    assert app.find_folder([]) == (tmp_path, "user/name@abc")
    monkeypatch.delenv("MODEL")
    monkeypatch.setenv("SPACE_ID", "user/space")
    assert app.find_folder([]) == (tmp_path, "openai-community/gpt2")
    assert [(repo, how["revision"]) for repo, how in asked] == [("user/name", "abc"), ("openai-community/gpt2", None)]
    assert not any(pattern.endswith(".py") for _, how in asked for pattern in how["allow_patterns"])


def test_the_front_matter_is_complete_and_versions_are_those_of_the_tests():
    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    needed = (
        "title emoji colorFrom colorTo sdk sdk_version app_file python_version license models short_description tags"
    )
    assert not set(needed.split()) - set(front) and front["sdk"] == "gradio" and (SPACE / front["app_file"]).exists()
    assert len(front["short_description"]) <= 60 and isinstance(front["python_version"], str)
    pinned = dict(
        line.split("==") for line in (REPO / ".ci" / "constraints.txt").read_text().split("\n") if "==" in line
    )
    assert front["sdk_version"] == pinned["gradio"]
    for line in (SPACE / "requirements.txt").read_text().splitlines():
        if "==" in line:
            name, version = line.split("==")
            assert pinned[name] == version, name
