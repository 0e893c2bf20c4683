"""Show a model on one page: tokens, next token, attention, logit lens, neighbors, generated text.

    python hub_card/space/app.py DIR

DIR is a base model, a classifier or a chat model, in our layout or stock GPT-2's. A Space on the Hub has no DIR: it
loads the model named by the variable MODEL (user/name, or user/name@commit), else the first one of `models:` in the
README.md next to this file. After the model is loaded, the page contacts no other machine.
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
    lesson,
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


MAX_TOKENS = 256  # of a text: the attention of every pair in every head is kept
CUT_SHOWN = 200  # tokens on each side of those that are read
DRAWN = 40  # tokens in a map
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
    "base": "The most likely next token at each token if the model ended after that layer. Top row: the full model.",
    "classifier": "The most likely class at each token if the model ended after that layer.",
}
EMPTY = "The text is empty. Type something above."


class Page:
    """The page of one model: each method turns the text and the sliders' values into HTML."""

    def __init__(self, subject: inspection.Subject):
        self.model, self.tokenizer, self.kind = subject
        self.context = self.model.config.max_position_embeddings
        self.look = lru_cache(maxsize=4)(lambda ids: inspection.look(self.model, list(ids)))

    def kept(self, ids: list[int]) -> range:
        """Return the positions of the tokens that are read: the first that fit for a classifier, else the last."""
        limit = min(self.context, MAX_TOKENS)
        return range(min(limit, len(ids))) if self.kind == "classifier" else range(max(0, len(ids) - limit), len(ids))

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
                if self.context <= MAX_TOKENS
                else f"this page reads {MAX_TOKENS}"
            )
            side = "last" if self.kind == "classifier" else "first"
            note = f"The text is too long: it has {len(ids)} tokens, and {why}. The {side} {cut} were cut."
        summary = f"{len(text):,} characters, {len(ids):,} tokens, each with its id below."
        start = max(0, kept.start - CUT_SHOWN)
        chips = [(inspection.spell(self.tokenizer, id), id) for id in ids[start : kept.stop + CUT_SHOWN]]
        return say(note, kind="note") + say(summary) + tokens_html(chips, range(kept.start - start, kept.stop - start))

    def next_token(self, text: str, temperature: float, top_k: int, top_p: float) -> str:
        if not (ids := self.read(text)):
            return say(EMPTY, kind="note")
        hidden = self.look(ids).hidden
        before = inspection.next_probabilities(self.model, hidden)
        after = inspection.next_probabilities(self.model, hidden, temperature, top_k or None, top_p)
        likeliest = before.topk(min(BARS, len(before))).indices.tolist()
        bars = [
            Bar(name, after[id].item(), f"{after[id]:.1%}", before[id].item())
            for name, id in zip(self.spelled(likeliest), likeliest, strict=True)
        ]
        count = int((after > 0).sum())
        note = f"{count:,} of {len(after):,} tokens can be drawn (all of them at top-k 0 and top-p 1). A thin mark "
        note += "shows the probability at temperature 1."
        return say(note) + bars_html(bars)

    def attention(self, text: str, layer: int, head: int) -> tuple[str, str]:
        if not (ids := self.read(text)):
            return say(EMPTY, kind="note"), ""
        weights = self.look(ids).attention[:, :, :DRAWN, :DRAWN]
        selected = map_html(weights[layer - 1, head - 1], self.spelled(ids[:DRAWN]))
        every = say("Every head, one row per layer.")
        every += heads_html(weights, layer - 1, head - 1)
        return say(f"Layer {layer}, head {head}.", self.limit_note(ids)) + selected, every

    def lens(self, text: str) -> str:
        if not (ids := self.read(text)):
            return say(EMPTY, kind="note")
        p, indices = inspection.logit_lens(self.model, self.look(ids).hidden[:, :DRAWN])
        rows = indices[..., 0].tolist()
        names = self.names() if self.kind == "classifier" else None
        outputs = [[names[n] for n in row] if names else self.spelled(row) for row in rows]
        return say(self.limit_note(ids)) + lens_html(p[..., 0], outputs, self.spelled(ids[:DRAWN]))

    def limit_note(self, ids) -> str:
        return f"Only the first {DRAWN} of {len(ids)} tokens are drawn." if len(ids) > DRAWN else ""

    def choices(self, text: str):
        """Return a list of the text's tokens to choose from, with the last one selected."""
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

    def generate(self, text: str, max_tokens: int, temperature: float, top_k: int, top_p: float, seed: float | None):
        """Yield the text with its continuation, once for each new piece."""
        options = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p, "seed": int(seed or 0)}
        for piece in stream(self.model, self.tokenizer, encode(self.tokenizer, text), int(max_tokens), **options):
            text += piece
            yield text

    def answer(self, text: str, messages: list, max_tokens: int, temperature: float, top_k: int, top_p: float, seed):
        """Yield ("", the conversation to show, the conversation) once for each new piece of the answer."""
        if not text.strip():
            yield "", _shown(messages), messages
            return
        prompt = [*messages, {"role": "user", "content": text}]
        ids = encode_prompt(self.tokenizer, prompt)
        if len(ids) > self.context:
            gr.Warning(f"The conversation has {len(ids)} tokens, the context {self.context}: its beginning is cut.")
        options = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p, "seed": int(seed or 0)}
        answer = ""
        yield "", _shown(prompt), messages  # with an empty answer, the question is not kept
        for piece in stream(self.model, self.tokenizer, ids, int(max_tokens), **options):
            answer += piece
            conversation = [*prompt, {"role": "assistant", "content": answer}]
            yield "", _shown(conversation), conversation


def _shown(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    # Gradio reads a message as HTML, and would fetch an <img> in it from any address.
    return [{**message, "content": page_text(message["content"])} for message in messages]


# --- The page ----------------------------------------------------------------------------------------------------


def heading(name: str, note: str = "", level: int = 3) -> str:
    """Return the heading of a part of the page, with a note and the name of its lesson below it."""
    lines = [line for line in (note, lesson(name)) if line]
    return title(name, level) + (say(*lines) if lines else "")


def sampling() -> list:
    """Add the three sliders that limit the tokens to draw from."""
    with gr.Row():
        temperature = gr.Slider(0, 2, 0.8, step=0.05, label="temperature", min_width=150)
        top_k = gr.Slider(0, 100, 50, step=1, label="top-k", min_width=150)
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="top-p", min_width=150)
    return [temperature, top_k, top_p]


def drawing() -> list:
    """Add the options of generation: the number of tokens, the sampling sliders, the seed."""
    with gr.Accordion("Sampling", open=False):
        max_tokens = gr.Slider(1, 200, 60, step=1, label="maximum number of new tokens")
        sliders = sampling()
        seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**31 - 1)
    return [max_tokens, *sliders, seed]


def build(subject: inspection.Subject, name: str) -> gr.Blocks:
    """Build the page of a model; `name` is its title."""
    page = Page(subject)
    config, live = subject.model.config, {"show_progress": "hidden", "trigger_mode": "always_last"}
    L, H = config.num_hidden_layers, config.num_attention_heads
    parameters = sum(p.numel() for p in subject.model.parameters())
    changes = []  # (method of the page, its sliders, the components that show its result)

    def show(method, *sliders, into) -> None:
        changes.append((method, list(sliders), into))
        for slider in sliders:
            slider.change(method, [text, *sliders], into, **live)

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
        text = gr.Textbox(EXAMPLE, label="Text", lines=2, max_lines=8, elem_id="text")
        if subject.kind == "classifier":
            gr.HTML(heading("Classes"))
            show(page.classes, into=[gr.HTML(elem_id="classes")])
        gr.HTML(heading("Tokens"))
        show(page.tokens, into=[gr.HTML(elem_id="tokens")])
        with gr.Row():
            if subject.kind != "classifier":
                with gr.Column(min_width=320):
                    gr.HTML(heading("Next token"))
                    show(page.next_token, *sampling(), into=[gr.HTML(elem_id="next")])
            if subject.kind == "base":
                with gr.Column(min_width=320):
                    _generate(page, text)
        gr.HTML(heading("Attention", "Row: the token that attends. Column: the token it attends to."))
        with gr.Row():
            layer = gr.Slider(1, L, L, step=1, label="layer", visible=L > 1, elem_id="layer", min_width=150)
            head = gr.Slider(1, H, 1, step=1, label="head", visible=H > 1, elem_id="head", min_width=150)
        with gr.Row():
            with gr.Column(min_width=320):
                selected = gr.HTML(elem_id="map")
            with gr.Column(min_width=320):
                overview = gr.HTML(elem_id="heads")
        show(page.attention, layer, head, into=[selected, overview])
        gr.HTML(heading("Logit lens", LENS["classifier" if subject.kind == "classifier" else "base"]))
        show(page.lens, into=[gr.HTML(elem_id="lens")])
        gr.HTML(heading("Neighbors", "The tokens with the most similar embeddings, by cosine."))
        token = gr.Dropdown(label="a token of the text", elem_id="token")
        near = gr.HTML(elem_id="near")
        token.change(page.neighbors, token, near, **live)
        show(page.choices, into=[token])

        def update(text, *values):
            """Return everything that depends on the text, in the order of `changes`."""
            results, values = [], list(values)
            for method, sliders, into in changes:
                result = method(text, *(values.pop(0) for _ in sliders))
                results += result if len(into) > 1 else [result]
            return results

        sliders = [slider for _, sliders, _ in changes for slider in sliders]
        pieces = [piece for _, _, into in changes for piece in into]
        gr.on([text.change, blocks.load], update, [text, *sliders], pieces, **live)
    return blocks


def _generate(page: Page, text: gr.Textbox) -> None:
    gr.HTML(heading("Generate"))
    with gr.Row():
        start = gr.Button("Generate", variant="primary", elem_id="start", min_width=80)
        stop = gr.Button("Stop", elem_id="stop", min_width=80)
    options = drawing()
    written = gr.Textbox(label="The text with its continuation", lines=6, interactive=False, elem_id="written")
    run = start.click(page.generate, [text, *options], written, show_progress="hidden")
    stop.click(None, cancels=[run])


def _chat(page: Page) -> None:
    gr.HTML(heading("Chat"))
    messages = gr.State([])
    chatbot = gr.Chatbot(
        show_label=False, render_markdown=False, height=320, elem_id="chat", buttons=[], feedback_options=None
    )
    message = gr.Textbox(label="Your message", lines=1, elem_id="said")
    with gr.Row():
        start = gr.Button("Send", variant="primary", elem_id="start", min_width=80)
        stop = gr.Button("Stop", elem_id="stop", min_width=80)
        clear = gr.Button("Clear", elem_id="clear", min_width=80)
    inputs, outputs = [message, messages, *drawing()], [message, chatbot, messages]
    run = gr.on([start.click, message.submit], page.answer, inputs, outputs, show_progress="hidden")
    stop.click(None, cancels=[run])
    clear.click(lambda: ([], []), None, [chatbot, messages], cancels=[run])


def launch(blocks: gr.Blocks, **options) -> str:
    """Serve the page and return its URL."""
    theme = gr.themes.Default(primary_hue="blue", font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace"))
    look = {"theme": theme, "css": CSS, "footer_links": [], "ssr_mode": False, "share": False}
    return blocks.launch(**look, **options)[1]


# --- Which model -------------------------------------------------------------------------------------------------


def find_folder(words: list[str]) -> tuple[Path, str]:
    """Return the model's folder and name: DIR, or a download of MODEL or `models:`.

    Raises:
        ValueError: DIR is not a folder, or no model is given.
    """
    if len(words) == 1 and not words[0].startswith("-"):
        folder = Path(words[0]).resolve()
        if not folder.is_dir():
            raise ValueError(f"{words[0]} is not a folder. Give a model folder, such as runs/pretrain/model.")
        return folder, "/".join(folder.parts[-2:])
    name = os.environ.get("MODEL") or _named_in_readme()
    if words or not {"MODEL", "SPACE_ID"} & set(os.environ):
        raise ValueError("Give one model folder, such as runs/pretrain/model.")
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt"]  # no code, because scratch_gpt has it
    return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns)), name


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
