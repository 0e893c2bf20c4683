"""A model folder -> one page that looks inside: tokens, next token, attention, logit lens, neighbors, its words.

    python hub_card/space/app.py DIR

DIR is a base model, a classifier or a chat model, in our layout or stock GPT-2's. As a Space on the Hub it has no DIR:
there it takes the model that the variable MODEL names (user/name, or user/name@commit), else the first one of
`models:` in the README.md beside it. Nothing is asked of any other machine once the model is here.
"""

import os
import sys
from functools import lru_cache
from pathlib import Path


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio as gr
except ImportError:
    print('error: gradio is not installed; it is an extra: pip install "scratch_gpt[space]"', file=sys.stderr)
    raise SystemExit(2) from None

from scratch_gpt.analysis import inspection
from scratch_gpt.analysis.inspection_page import (
    INSPECTION_STYLE,
    Bar,
    bars_html,
    heads_html,
    lens_html,
    map_html,
    say,
    title,
    tokens_html,
    visible,
)
from scratch_gpt.data.rows.conversations import encode_prompt
from scratch_gpt.generation.generate import stream
from scratch_gpt.tokenization.tokenizer import encode
from scratch_gpt.utils.html import page_text


LOOKED_AT = 256  # tokens of a text: attention is kept of every pair, in every head
CUT_SHOWN = 200  # of the tokens that are not looked at
DRAWN = 40  # tokens of a map
BARS = 15
EXAMPLE = "The cat sat on the mat because it was tired."
SYSTEM_FONTS = ("system-ui", "DejaVu Sans", "sans-serif")
CSS = (
    INSPECTION_STYLE
    + """.main.fillable { padding: 12px 16px 48px !important; } main.contain { padding: 0 !important; }
.html-container { padding: 0 2px !important; } .column.gap, main .column { gap: 10px; } footer { display: none; }
.look h2 { font-size: 1.5rem; margin: 0; } .look h3 { font-size: 1.15rem; margin: 1.4rem 0 0; }
input[type=range]::-webkit-slider-thumb { box-shadow: 0 0 0 1px #5b84b1 !important; }
@media (min-width: 800px) { #text { position: sticky; top: 0; z-index: 30; } }
"""
)
LENS = {
    "base": "What would come after each token if the model ended after that layer. The top row is its own answer.",
    "classifier": "Which class it would be, read at each token, if the model ended after that layer.",
}
EMPTY = "The text is empty. Type something above."


class Page:
    """One subject and what the page says of a text: each method turns what was typed and moved into HTML."""

    def __init__(self, subject: inspection.Subject):
        self.model, self.tokenizer, self.kind = subject
        self.context = self.model.config.max_position_embeddings
        self.look = lru_cache(maxsize=4)(lambda ids: inspection.look(self.model, list(ids)))

    def kept(self, ids: list[int]) -> range:
        """Which of the tokens are looked at: of a classifier the first, as it was trained, else the last that fit."""
        most = min(self.context, LOOKED_AT)
        return range(min(most, len(ids))) if self.kind == "classifier" else range(max(0, len(ids) - most), len(ids))

    def read(self, text: str) -> tuple[int, ...]:
        ids = encode(self.tokenizer, text)
        kept = self.kept(ids)
        return tuple(ids[kept.start : kept.stop])

    def spelled(self, ids) -> list[str]:
        return [visible(inspection.spell(self.tokenizer, id)) for id in ids]

    def names(self) -> list[str]:
        return [visible(self.model.config.id2label[n]) for n in range(self.model.config.num_labels)]

    def tokens(self, text: str) -> str:
        ids = encode(self.tokenizer, text)
        if not ids:
            return say(EMPTY, kind="note")
        kept = self.kept(ids)
        cut, note = len(ids) - len(kept), ""
        if cut:
            why = (
                f"the model's context is {self.context}"
                if self.context <= LOOKED_AT
                else f"this page reads {LOOKED_AT}"
            )
            side = "last" if self.kind == "classifier" else "first"
            note = f"The text is too long: it has {len(ids)} tokens, and {why}. The {side} {cut} were cut."
        told = f"{len(text):,} characters, {len(ids):,} tokens. Below each stands its id."
        start = max(0, kept.start - CUT_SHOWN)
        chips = [(inspection.spell(self.tokenizer, id), id) for id in ids[start : kept.stop + CUT_SHOWN]]
        return say(note, kind="note") + say(told) + tokens_html(chips, range(kept.start - start, kept.stop - start))

    def next_token(self, text: str, temperature: float, top_k: int, top_p: float) -> str:
        if not (ids := self.read(text)):
            return say(EMPTY, kind="note")
        hidden = self.look(ids).hidden
        before = inspection.next_probabilities(self.model, hidden)
        after = inspection.next_probabilities(self.model, hidden, temperature, top_k or None, top_p)
        found = before.topk(min(BARS, len(before))).indices.tolist()
        bars = [
            Bar(name, after[id].item(), f"{after[id]:.1%}", before[id].item())
            for name, id in zip(self.spelled(found), found, strict=True)
        ]
        left = int((after > 0).sum())
        told = f"{left:,} of {len(after):,} tokens may be drawn (all of them at top-k 0 and top-p 1). A thin mark is "
        told += "where a bar stands at temperature 1."
        return say(told) + bars_html(bars)

    def attention(self, text: str, layer: int, head: int) -> tuple[str, str]:
        if not (ids := self.read(text)):
            return say(EMPTY, kind="note"), ""
        weights = self.look(ids).attention[:, :, :DRAWN, :DRAWN]
        drawn = map_html(weights[layer - 1, head - 1], self.spelled(ids[:DRAWN]))
        every = say("Every head; the layers below each other.")
        every += heads_html(weights, layer - 1, head - 1)
        return say(f"Layer {layer}, head {head}.", self.left_out(ids)) + drawn, every

    def lens(self, text: str) -> str:
        if not (ids := self.read(text)):
            return say(EMPTY, kind="note")
        p, found = inspection.logit_lens(self.model, self.look(ids).hidden[:, :DRAWN])
        rows = found[..., 0].tolist()
        names = self.names() if self.kind == "classifier" else None
        said = [[names[n] for n in row] if names else self.spelled(row) for row in rows]
        return say(self.left_out(ids)) + lens_html(p[..., 0], said, self.spelled(ids[:DRAWN]))

    def left_out(self, ids) -> str:
        return f"Drawn are the first {DRAWN} of {len(ids)} tokens." if len(ids) > DRAWN else ""

    def choices(self, text: str):
        """The tokens of the text to choose from, the last one chosen."""
        ids = list(dict.fromkeys(self.read(text)))
        choices = [(f"{inspection.spell(self.tokenizer, id)!r}  {id}", id) for id in ids]
        return gr.Dropdown(choices=choices, value=ids[-1] if ids else None)

    def neighbors(self, id: int | None) -> str:
        if id is None:
            return say(EMPTY, kind="note")
        cosines, ids = inspection.neighbors(self.model, id, BARS)
        rows = zip(self.spelled(ids.tolist()), cosines.tolist(), strict=True)
        return bars_html([Bar(name, cosine, f"{cosine:.3f}") for name, cosine in rows])

    def classes(self, text: str) -> str:
        if not (ids := self.read(text)):
            return say(EMPTY, kind="note")
        p = inspection.class_probabilities(self.model, self.look(ids).hidden).tolist()
        bars = [Bar(name, value, f"{value:.1%}") for name, value in zip(self.names(), p, strict=True)]
        return bars_html(sorted(bars, key=lambda bar: -bar.value))

    def go_on(self, text: str, most: int, temperature: float, top_k: int, top_p: float, seed: float | None):
        """The text and its continuation, again and again as it grows."""
        how = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p, "seed": int(seed or 0)}
        for piece in stream(self.model, self.tokenizer, encode(self.tokenizer, text), int(most), **how):
            text += piece
            yield text

    def answer(self, said: str, messages: list, most: int, temperature: float, top_k: int, top_p: float, seed):
        """("", the conversation as it is shown, and as it is) again and again as the answer grows."""
        if not said.strip():
            yield "", _shown(messages), messages
            return
        asked = [*messages, {"role": "user", "content": said}]
        ids = encode_prompt(self.tokenizer, asked)
        if len(ids) > self.context:
            gr.Warning(f"The conversation has {len(ids)} tokens, the context {self.context}: its beginning is cut.")
        how = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p, "seed": int(seed or 0)}
        answer = ""
        yield "", _shown(asked), messages  # where it says nothing, nothing was asked
        for piece in stream(self.model, self.tokenizer, ids, int(most), **how):
            answer += piece
            so_far = [*asked, {"role": "assistant", "content": answer}]
            yield "", _shown(so_far), so_far


def _shown(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    # Gradio takes what is said for HTML, and an <img> in it would be fetched from wherever it says.
    return [{**message, "content": page_text(message["content"])} for message in messages]


# --- The page ----------------------------------------------------------------------------------------------------


def heading(name: str, more: str = "", level: int = 3) -> str:
    """The name of a part of the page, and what is to be known of it."""
    return title(name, level) + (say(more) if more else "")


def sampling() -> list:
    """The three sliders that decide what may be drawn."""
    with gr.Row():
        temperature = gr.Slider(0, 2, 0.8, step=0.05, label="temperature", min_width=150)
        top_k = gr.Slider(0, 100, 50, step=1, label="top-k", min_width=150)
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="top-p", min_width=150)
    return [temperature, top_k, top_p]


def drawing() -> list:
    """How much is written, how it is drawn, and by which seed."""
    with gr.Accordion("How it is drawn", open=False):
        most = gr.Slider(1, 200, 60, step=1, label="tokens to add at most")
        how = sampling()
        seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**31 - 1)
    return [most, *how, seed]


def build(subject: inspection.Subject, name: str) -> gr.Blocks:
    """The page of a subject; `name` is what it is called."""
    page = Page(subject)
    config, live = subject.model.config, {"show_progress": "hidden", "trigger_mode": "always_last"}
    L, H = config.num_hidden_layers, config.num_attention_heads
    parameters = sum(p.numel() for p in subject.model.parameters())
    changes = []  # (what says it, what it is told beside the text, where it is shown)

    def shown(say_it, *more, into) -> None:
        changes.append((say_it, list(more), into))
        for slider in more:
            slider.change(say_it, [text, *more], into, **live)

    with gr.Blocks(title=f"Inside {name}", analytics_enabled=False, fill_width=False) as blocks:
        gr.HTML(
            heading(
                f"Inside {name}",
                f"{subject.kind}, {parameters:,} parameters: {L} layers, {H} heads, {config.hidden_size} wide, "
                f"{config.vocab_size:,} tokens, a context of {page.context:,}.",
                2,
            )
        )
        if subject.kind == "chat":
            _chat(page)
        text = gr.Textbox(EXAMPLE, label="A text to look at", lines=2, max_lines=8, elem_id="text")
        if subject.kind == "classifier":
            gr.HTML(heading("Classes"))
            shown(page.classes, into=[gr.HTML(elem_id="classes")])
        gr.HTML(heading("Tokens"))
        shown(page.tokens, into=[gr.HTML(elem_id="tokens")])
        with gr.Row():
            if subject.kind != "classifier":
                with gr.Column(min_width=320):
                    gr.HTML(heading("Next token"))
                    shown(page.next_token, *sampling(), into=[gr.HTML(elem_id="next")])
            if subject.kind == "base":
                with gr.Column(min_width=320):
                    _generate(page, text)
        gr.HTML(heading("Attention", "A row is the token that looks, a column what it looks at."))
        with gr.Row():
            layer = gr.Slider(1, L, L, step=1, label="layer", visible=L > 1, elem_id="layer", min_width=150)
            head = gr.Slider(1, H, 1, step=1, label="head", visible=H > 1, elem_id="head", min_width=150)
        with gr.Row():
            with gr.Column(min_width=320):
                one = gr.HTML(elem_id="map")
            with gr.Column(min_width=320):
                every = gr.HTML(elem_id="heads")
        shown(page.attention, layer, head, into=[one, every])
        gr.HTML(heading("Logit lens", LENS["classifier" if subject.kind == "classifier" else "base"]))
        shown(page.lens, into=[gr.HTML(elem_id="lens")])
        gr.HTML(heading("Neighbors", "The tokens whose embeddings point the same way: the cosine of the angle."))
        token = gr.Dropdown(label="a token of the text", elem_id="token")
        near = gr.HTML(elem_id="near")
        token.change(page.neighbors, token, near, **live)
        shown(page.choices, into=[token])

        def look(text, *more):
            """Everything that a text decides, in the order of `changes`."""
            found, more = [], list(more)
            for say_it, sliders, into in changes:
                told = say_it(text, *(more.pop(0) for _ in sliders))
                found += told if len(into) > 1 else [told]
            return found

        sliders = [slider for _, more, _ in changes for slider in more]
        pieces = [piece for _, _, into in changes for piece in into]
        gr.on([text.change, blocks.load], look, [text, *sliders], pieces, **live)
    return blocks


def _generate(page: Page, text: gr.Textbox) -> None:
    gr.HTML(heading("Generate"))
    with gr.Row():
        start = gr.Button("Generate", variant="primary", elem_id="start", min_width=80)
        stop = gr.Button("Stop", elem_id="stop", min_width=80)
    how = drawing()
    written = gr.Textbox(label="The text, and what comes after it", lines=6, interactive=False, elem_id="written")
    run = start.click(page.go_on, [text, *how], written, show_progress="hidden")
    stop.click(None, cancels=[run])


def _chat(page: Page) -> None:
    gr.HTML(heading("Chat"))
    messages = gr.State([])
    shown = gr.Chatbot(
        show_label=False, render_markdown=False, height=320, elem_id="chat", buttons=[], feedback_options=None
    )
    said = gr.Textbox(label="Say something", lines=1, elem_id="said")
    with gr.Row():
        start = gr.Button("Send", variant="primary", elem_id="start", min_width=80)
        stop = gr.Button("Stop", elem_id="stop", min_width=80)
        clear = gr.Button("Clear", elem_id="clear", min_width=80)
    how = drawing()
    asked, answered = [said, messages, *how], [said, shown, messages]
    run = gr.on([start.click, said.submit], page.answer, asked, answered, show_progress="hidden")
    stop.click(None, cancels=[run])
    clear.click(lambda: ([], []), None, [shown, messages], cancels=[run])


def launch(blocks: gr.Blocks, **options) -> str:
    """Serve the page; returns its address."""
    theme = gr.themes.Default(primary_hue="blue", font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace"))
    look = {"theme": theme, "css": CSS, "footer_links": [], "ssr_mode": False, "share": False}
    return blocks.launch(**look, **options)[1]


# --- Which model -------------------------------------------------------------------------------------------------


def find_folder(words: list[str]) -> tuple[Path, str]:
    """DIR and what it is called, or what the Hub gives for MODEL or `models:`; ValueError where there is neither."""
    if len(words) == 1 and not words[0].startswith("-"):
        folder = Path(words[0]).resolve()
        if not folder.is_dir():
            raise ValueError(f"There is no folder {words[0]}.")
        return folder, "/".join(folder.parts[-2:])
    name = os.environ.get("MODEL") or _named_in_readme()
    if words or not {"MODEL", "SPACE_ID"} & set(os.environ):
        raise ValueError("Give one model folder, such as runs/pretrain/model.")
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    needed = ["*.json", "*.safetensors", "*.jinja", "*.txt"]  # no code: the model's is that of scratch_gpt
    return Path(snapshot_download(repo, revision=revision or None, allow_patterns=needed)), name


def _named_in_readme() -> str:
    import yaml

    front = (Path(__file__).parent / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    return yaml.safe_load(front)["models"][0]


def main(argv: list[str] | None = None) -> None:
    try:
        folder, name = find_folder(sys.argv[1:] if argv is None else argv)
        subject = inspection.open_subject(folder)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    launch(build(subject, name))


if __name__ == "__main__":
    main()
