"""Draw an inspection as pieces of HTML: chips, bars, maps. They need no scripts or requests.

A page that shows them includes INSPECTION_STYLE. For dark colors it sets the class `dark` on an outer element.
"""

import io
from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..utils.html import page_text
from ..utils.plots import TRAIN, VALIDATION


INSPECTION_STYLE = (
    """
.look { --hue: #2f6fae; --line: #d9dee4; --soft: #5c6773; --track: #eef1f4; --ink: #1d232b;
  color: var(--ink); font: 14px/1.45 system-ui, "DejaVu Sans", sans-serif; }
.dark .look { --hue: #5d9bd8; --line: #3a434d; --soft: #9aa5b1; --track: #262d36; --ink: #e4e8ec; }
.look p { margin: .2rem 0 .6rem; color: var(--soft); } .look .note { color: #a86f00; font-weight: 500; }
.dark .look .note { color: #e0ae4e; }
.look .wide { overflow-x: auto; }
.look .tokens { line-height: 1.2; }
.look .tokens span { display: inline-block; margin: 0 2px 6px 0; padding: 3px 5px 2px; border-radius: 5px;
  white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; }
.look .tokens small { display: block; color: var(--soft); font-size: 11px; }
.look .tokens .cut { opacity: .4; text-decoration: line-through; }
"""
    + "".join(
        f".look .tokens .c{n} {{ background: hsl({hue} 65% 50% / .2); }}\n"
        for n, hue in enumerate((210, 30, 150, 330, 265))
    )
    + f".look .bars i s {{ position: absolute; top: -2px; bottom: -2px; width: 2px; background: {VALIDATION}; }}\n"
    + """.look .bars { display: grid; grid-template-columns: minmax(4rem, auto) minmax(0, 1fr) auto; gap: 3px 10px;
  align-items: center; }
.look .bars b { font-weight: 500; text-align: right; overflow-wrap: anywhere; max-width: 11rem; }
.look .bars i { position: relative; display: block; height: 16px; background: var(--track); border-radius: 3px; }
.look .bars i u { position: absolute; inset: 0 auto 0 0; background: var(--hue); border-radius: 3px; }
.look .bars span { font-variant-numeric: tabular-nums; text-align: right; } .look .bars .no { opacity: .45; }
.look svg { display: block; font: 11px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }
.look svg rect { stroke: var(--line); stroke-width: .5; }
.look .heads { display: grid; gap: 4px; } .look .heads > small { color: var(--soft); align-self: center; }
.look .heads img { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; background: var(--track);
  border-radius: 2px; } .look .heads .on { outline: 2px solid var(--hue); }
.look table { border-collapse: separate; border-spacing: 2px; border: 0; margin: 0; }
.look th { font-weight: 500; text-align: left; }
.look td, .look th { padding: 3px 6px; border: 0; white-space: nowrap; border-radius: 3px; }
.look tr > th:first-child { position: sticky; left: 0; background: var(--body-background-fill, inherit);
  color: var(--soft); }
.look td small { opacity: .75; }
"""
)
SIDE = 24  # units of a cell of the map
LESSONS = {  # part of the page -> (notebook, the heading of its cell)
    "Tokens": ("1_by_hand.ipynb", "1. Tokens"),
    "Next token": ("1_by_hand.ipynb", "8. Temperature and top-k"),
    "Attention": ("1_by_hand.ipynb", "4. Attention with dot products"),
    "Logit lens": ("1_by_hand.ipynb", "6. Heads and one block"),
    "Neighbors": ("1_by_hand.ipynb", "3. Embeddings and positions"),
    "Classes": ("3_classify_and_instruct.ipynb", "3. Classify: four ways to tune"),
    "Chat": ("3_classify_and_instruct.ipynb", "6. A chat turn"),
    "Generate": ("2_pretrain_and_publish.ipynb", "5. Load and generate"),
}


def visible(text: str, max_length: int = 24) -> str:
    """Return a token's text, escaped and shortened, with visible signs for spaces, line breaks and tabs."""
    for character, sign in ((" ", "\u00b7"), ("\n", "\u21b5"), ("\t", "\u21e5")):
        text = text.replace(character, sign)
    return page_text(text if len(text) <= max_length else text[: max_length - 1] + "\u2026")


def title(text: str, level: int = 3) -> str:
    """Return a heading for the page (level 2) or a part of it."""
    return _piece(f"<h{level}>{page_text(text)}</h{level}>")


def say(*lines: str, kind: str = "") -> str:
    """Return sentences, one paragraph each; those of `kind` "note" are highlighted."""
    return _piece("".join(f'<p class="{kind}">{page_text(line)}</p>' for line in lines if line))


def lesson(part: str) -> str:
    """Return a sentence that names the lesson on a part of the page; empty for a part without one.

    Example:
        >>> lesson("Tokens")
        'Computed by hand in training/notebooks/1_by_hand.ipynb, "1. Tokens".'
    """
    if part not in LESSONS:
        return ""
    notebook, cell = LESSONS[part]
    how = "Computed by hand in" if notebook.startswith("1") else "Shown in"
    return f'{how} training/notebooks/{notebook}, "{cell}".'


def tokens_html(tokens: Sequence[tuple[str, int]], used: range) -> str:
    """Return the (text, id) pairs of tokens as chips of alternating colors; those outside `used` are crossed out."""
    chips = []
    for n, (text, id) in enumerate(tokens):
        kind = f"c{n % 5}" if n in used else "cut"
        label = page_text(text).replace("\n", "\u21b5") or "\u00a0"
        chips.append(f'<span class="{kind}">{label}<small>{id}</small></span>' + "<br>" * text.count("\n"))
    return _piece(f'<div class="tokens">{"".join(chips)}</div>')


class Bar(NamedTuple):
    """One line of a bar chart; a bar of length 1 fills the width."""

    name: str  # escaped
    value: float
    label: str  # the number as text
    before: float | None = None  # an earlier value, drawn as a mark


def bars_html(bars: Sequence[Bar]) -> str:
    """Return a bar chart on a scale from 0 to 1."""
    rows = []
    for bar in bars:
        mark = "" if bar.before is None else f'<s style="left:{bar.before:.2%}"></s>'
        kind = "" if bar.value > 0 else ' class="no"'
        rows.append(f'<b{kind}>{bar.name}</b><i><u style="width:{max(0.0, bar.value):.2%}"></u>{mark}</i>')
        rows.append(f"<span{kind}>{page_text(bar.label)}</span>")
    return _piece(f'<div class="bars">{"".join(rows)}</div>')


def map_html(weights: torch.Tensor, tokens: Sequence[str]) -> str:
    """Return a map of one head's attention (T, T) over the tokens (escaped), shaded by the square root of a weight."""
    T, margin = len(tokens), 8 * min(16, max(map(len, tokens))) + 8
    size = margin + SIDE * T
    out = [f'<svg width="{size}" height="{size}" viewBox="0 0 {size} {size}" role="img">']
    for n, token in enumerate(tokens):
        middle = margin + SIDE * n + SIDE // 2
        out.append(f'<text x="{margin - 5}" y="{middle + 4}" text-anchor="end">{token}</text>')
        out.append(f'<text transform="translate({middle + 4} {margin - 5}) rotate(-90)">{token}</text>')
    for i, row in enumerate(weights.tolist()):
        for j, weight in enumerate(row[: i + 1]):  # later tokens are hidden
            x, y, shade = margin + SIDE * j, margin + SIDE * i, f"{weight**0.5:.4f}"
            out.append(
                f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" fill="{TRAIN}" fill-opacity="{shade}">'
                f"<title>{tokens[i]} looks at {tokens[j]}: {weight:.1%}</title></rect>"
            )
    return _piece(f'<div class="wide">{"".join(out)}</svg></div>')


def heads_html(attention: torch.Tensor, layer: int, head: int) -> str:
    """Return a small map of each head's attention (L, H, T, T), one row per layer; the selected one is framed."""
    L, H = attention.shape[:2]
    cells = []
    for n in range(L):
        cells.append(f"<small>{n + 1}</small>")
        for m in range(H):
            kind = ' class="on"' if (n, m) == (layer, head) else ""
            label = f"layer {n + 1}, head {m + 1}"
            cells.append(f'<img{kind} src="{_picture(attention[n, m])}" alt="{label}" title="{label}">')
    columns = f"grid-template-columns: 1.2rem repeat({H}, minmax(0, 5rem))"
    return _piece(f'<div class="heads" style="{columns}">{"".join(cells)}</div>')


def lens_html(probabilities: torch.Tensor, names: Sequence[Sequence[str]], tokens: Sequence[str]) -> str:
    """Return a table of the most likely outputs after each layer (L + 1, T) by name (escaped), one row per layer."""
    head = "".join(f"<th>{token}</th>" for token in tokens)
    rows = []
    for n in reversed(range(len(names))):
        cells = []
        for p, name in zip(probabilities[n].tolist(), names[n], strict=True):
            shade = f"background: color-mix(in srgb, {TRAIN} {0.7 * p**0.5:.0%}, transparent)"
            cells.append(f'<td style="{shade}">{name} <small>{p:.0%}</small></td>')
        rows.append(f"<tr><th>{f'layer {n}' if n else 'embedding'}</th>{''.join(cells)}</tr>")
    return _piece(f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>')


def _piece(inner: str) -> str:
    return f'<div class="look">{inner}</div>'


def _picture(weights: torch.Tensor) -> str:
    # Return a data URL of a PNG of T x T pixels with the square root of the weight as opacity.
    from PIL import Image

    red, green, blue = bytes.fromhex(TRAIN[1:])
    pixels = torch.empty(*weights.shape, 4, dtype=torch.uint8)
    pixels[..., :3] = torch.tensor([red, green, blue], dtype=torch.uint8)
    pixels[..., 3] = (255 * weights.sqrt()).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


__all__ = [
    "INSPECTION_STYLE",
    "LESSONS",
    "Bar",
    "bars_html",
    "heads_html",
    "lens_html",
    "lesson",
    "map_html",
    "say",
    "title",
    "tokens_html",
    "visible",
]
