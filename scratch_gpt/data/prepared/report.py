"""Report a preparation as one HTML page: filters, lengths, compression, mixture and one row in colors.

The page is self-contained: it has no scripts, makes no requests, and follows the system's light or dark theme.
Histograms are SVG; all other bars are HTML boxes with a relative width.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...utils.html import page, page_text
from ...utils.wording import plural
from ..manifest import place
from ..rows.windows import IGNORED


BINS_PER_DECADE = 12
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 480, 260, 48, 62, 44  # size and margins of a histogram
REPORT_STYLE = """
.facts, .charts { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fit, minmax(6.8rem, 1fr)); }
.charts { gap: 1.2rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.facts div { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .7rem; color: var(--soft); }
.facts b { display: block; white-space: nowrap; font-size: 1.2rem; color: var(--ink); }
figure { margin: 0; max-width: 36rem; } svg { display: block; width: 100%; height: auto; font-size: 13px; }
svg text { fill: var(--soft); stroke: var(--paper); stroke-width: 3px; paint-order: stroke; }
svg line { stroke: var(--line); } svg rect { fill: var(--blue); }
@media (max-width: 30rem) { svg { font-size: 16px; } }
svg .median { stroke: var(--ink); fill: var(--ink); } svg .p95 { stroke: var(--gold); fill: var(--gold); }
svg .limit { stroke: var(--red); fill: var(--red); } svg text[class] { stroke: var(--paper); font-weight: 600; }
.bar { padding: .3rem 0; } .bar > span { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
.bar b { overflow-wrap: anywhere; } .bar span span { color: var(--soft); }
.track { display: flex; height: 1.05rem; background: var(--track); border-radius: .2rem; overflow: hidden; }
.track + .track { margin-top: 2px; } .blue { background: var(--blue); } .red { background: var(--red); }
.hollow { border: 2px solid var(--blue); border-radius: .2rem; }
.axis { display: flex; justify-content: space-between; border-top: 1px solid var(--soft); color: var(--soft);
  font-size: .8rem; } .key { font-size: .85rem; color: var(--soft); }
.key i { display: inline-block; width: .9rem; height: .9rem; margin: 0 .3rem 0 .9rem; vertical-align: -.1rem; }
summary { cursor: pointer; color: var(--soft); font-size: .85rem; } summary::marker { color: var(--blue); }
blockquote { margin: .5rem 0; padding: .1rem .8rem; border-left: 3px solid var(--red); max-height: 11rem;
  overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .8rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
blockquote b { display: block; color: var(--red); } .scroll { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th { color: var(--soft); font-weight: 500; }
td, th { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
.row > div { padding-bottom: .4rem; } .row { font: .85rem/1.1 ui-monospace, "DejaVu Sans Mono", monospace; }
.row small { display: inline-block; padding: .2rem .4rem; margin: 0 .2rem 3px 0; border-radius: .2rem;
  background: hsl(var(--hue) 55% var(--shade)); color: #000; }
.row i { display: inline-block; vertical-align: top; margin: 0 1px 3px 0; padding: 2px 1px 0; min-width: 1.05em;
  font-style: normal; white-space: pre; text-align: center; border: 1px solid transparent; border-radius: 3px;
  background: hsl(var(--hue) 65% var(--tint)); max-width: 100%; overflow-x: hidden; }
.row i::after { content: attr(data-position); display: block; font-size: .6rem; opacity: .7; }
.row .no-target { background: none; border: 1px dashed hsl(var(--hue) 55% var(--shade)); }
.row .no-target s { text-decoration: line-through 2px var(--red); }
"""


def report_page(
    manifest: Mapping[str, Any],
    *,
    lengths: Mapping[str, np.ndarray],
    examples: Mapping[str, Sequence[tuple[str, str]]],
    row: Mapping[str, np.ndarray] | None = None,
    pieces: Sequence[str] | None = None,
) -> str:
    """Return the report on a prepared folder as HTML.

    Args:
        manifest: the folder's manifest, see manifest.py.
        lengths: for each split the length of its documents, (documents,), in tokens, or in bytes for text rows.
        examples: for each filter (reason, shortened text) of some rows that it removed; the reason may be empty.
        row: one row of `PreparedRows`.
        pieces: the text of each token of `row`.
    """
    name = ", ".join(place(source["name"]) for source in manifest["sources"])
    sections = [
        _filters(manifest["filters"], examples),
        _lengths(lengths, "bytes" if manifest["task"] == "text" else "tokens", manifest.get("max_length")),
        _splits(manifest["splits"]),
        _mixture(manifest["mixture"]) if manifest["mixture"] else "",
        _row(row, pieces, manifest["max_length"]) if row is not None and pieces is not None else "",
    ]
    return page(f"Prepared data: {name}", REPORT_STYLE, f"{_facts(manifest)}{''.join(sections)}")


# --- Sections ----------------------------------------------------------------------------------------------------


def _facts(manifest: Mapping[str, Any]) -> str:
    facts = {
        "documents read": f"{sum(source.get('rows', 0) for source in manifest['sources']):,}",
        "removed": f"{sum(counts['removed'] for counts in manifest['filters'].values()):,}",
        "rows written": f"{manifest['rows']:,}",
        "of text": _size(manifest["bytes"]),
    }
    if manifest["tokens"]:
        facts["tokens"] = _count(manifest["tokens"])
        facts["bytes per token"] = f"{manifest['bytes'] / manifest['tokens']:.2f}"
    if "tokenizer" in manifest:
        facts["tokens in the vocabulary"] = f"{manifest['tokenizer']['vocab_size']:,}"
    if "max_length" in manifest:
        kind = "packed" if manifest.get("pack") else "one document" if manifest.get("pad") else "windows"
        facts[f"tokens per row, {kind}"] = f"{manifest['max_length']:,}"
    cards = "".join(f"<div><b>{page_text(value)}</b>{page_text(name)}</div>" for name, value in facts.items())
    note = f"SHA-256 of the rows: {manifest['sha256'][:16]}...; manifest.json has the complete record."
    return f'<p>{page_text(note)}</p>\n<div class="facts">{cards}</div>\n'


def _filters(filters: Mapping[str, Mapping[str, int]], examples: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    if not filters:
        return ""
    total = max(1, *(counts["in"] for counts in filters.values()))
    bars = []
    for name, counts in filters.items():
        remaining = counts["in"] - counts["removed"]
        share = counts["removed"] / max(1, counts["in"])
        parts = [f"{counts['removed']:,} removed ({share:.1%})" if share else "none removed", f"{remaining:,} left"]
        parts += [f"{counts[key]:,} {key}" for key in ("changed", "flagged") if key in counts]
        bars.append(_bar(name, ", ".join(parts), [[("blue", remaining / total), ("red", counts["removed"] / total)]]))
        bars.append(_examples(examples.get(name, ()), counts["removed"]))
    key = _key(blue="left", red="removed by this filter")
    note = "Each filter sees the documents that the filters above it kept."
    return _section("Removed documents", note, key + "".join(bars) + _axis("0", f"{total:,} documents"))


def _examples(examples: Sequence[tuple[str, str]], removed: int) -> str:
    if not examples:
        return ""
    quotes = ""
    for reason, text in examples:
        quotes += f"<blockquote>{f'<b>{page_text(reason)}</b>' if reason else ''}{page_text(text)}</blockquote>"
    return f"<details><summary>{len(examples):,} of the {removed:,} removed</summary>{quotes}</details>\n"


def _lengths(lengths: Mapping[str, np.ndarray], unit: str, max_length: int | None) -> str:
    lengths = {name: np.maximum(token_counts, 1) for name, token_counts in lengths.items() if len(token_counts)}
    if not lengths:
        return ""
    bounds = [
        *(token_counts.min() for token_counts in lengths.values()),
        *(token_counts.max() + 1 for token_counts in lengths.values()),
    ]
    bounds += [] if max_length is None else [max_length]
    low, high = float(min(bounds)), float(max(bounds))
    charts = "".join(
        f"<figure><h3>{page_text(name)}: {plural(len(token_counts), 'document')}</h3>"
        f"{_histogram(token_counts, low, high, unit, max_length)}</figure>"
        for name, token_counts in lengths.items()
    )
    note = f"Number of documents by their length in {unit}. The axis is logarithmic."
    return _section("Lengths", note, f'<div class="charts">{charts}</div>')


def _histogram(lengths: np.ndarray, low: float, high: float, unit: str, max_length: int | None) -> str:
    """Draw the number of documents by length; low and high are the same for all histograms of a page."""
    steps = max(2, math.ceil(math.log10(high / low) * BINS_PER_DECADE) + 1)
    edges = np.unique(np.rint(np.geomspace(low, high, steps)).astype(np.int64))  # bins of integers
    counts, _ = np.histogram(lengths, edges)
    tallest = _round_up(int(counts.max()))

    def x(length: float) -> float:
        return LEFT + (WIDTH - LEFT - 8) * math.log(length / low) / math.log(high / low)

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * count / tallest

    elements = []
    for count in (0, tallest / 2, tallest):
        if count == int(count):
            elements.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(count):.1f}" y2="{y(count):.1f}"/>')
            elements.append(
                f'<text x="{LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{_count(int(count))}</text>'
            )
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            width = max(1.0, x(end) - x(start) - 1)
            label = f"{start:,} to {end - 1:,} {unit}: {plural(int(count), 'document')}"
            elements.append(
                f'<rect x="{x(start):.1f}" y="{y(count):.1f}" width="{width:.1f}" height="{y(0) - y(count):.1f}">'
                f"<title>{label}</title></rect>"
            )
    for tick in _log_ticks(low, high):
        elements.append(
            f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_count(tick)}</text>'
        )
    marks = [("median", "median", float(np.median(lengths))), ("p95", "95 % up to", float(np.quantile(lengths, 0.95)))]
    marks += [] if max_length is None else [("limit", "max_length", float(max_length))]
    for line, (kind, name, value) in enumerate(sorted(marks, key=lambda mark: mark[2])):
        at, height, label = x(value), 14 + 16 * line, f"{name} {value:,.0f}"
        anchor, offset = ("end", -5) if at + 9 * len(label) > WIDTH else ("start", 5)
        elements.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{height - 10}" y2="{y(0):.1f}"/>')
        elements.append(
            f'<text class="{kind}" x="{at + offset:.1f}" y="{height}" text-anchor="{anchor}">{label}</text>'
        )
    middle = (LEFT + WIDTH) / 2
    elements.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{unit} in a document</text>')
    elements.append(f'<text x="0" y="{TOP - 12}">documents</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(elements)}</svg>'


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> str:
    shares = {"padding_share": "padding", "cut_share": "in cut documents"}
    columns = {key: key for key in ("documents", "bytes", "rows", "tokens")} | {"asked": "targets"} | shares
    columns = {key: head for key, head in columns.items() if any(key in facts for facts in splits.values())}
    lines = ["<tr><th>split</th>" + "".join(f"<th>{head}</th>" for head in columns.values()) + "</tr>"]
    for name, facts in splits.items():
        cells = [format(facts[key], ".1%" if key in shares else ",") if key in facts else "" for key in columns]
        lines.append(f"<tr><td>{page_text(name)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    table = f'<div class="scroll"><table>{"".join(lines)}</table></div>\n'
    ratios = {name: facts["bytes"] / facts["tokens"] for name, facts in splits.items() if facts.get("tokens")}
    if not ratios:
        return _section("Splits", "", table)
    end = math.ceil(max(ratios.values()))
    bars = [_bar(name, f"{ratio:.2f} bytes per token", [[("blue", ratio / end)]]) for name, ratio in ratios.items()]
    note = (
        "Mean number of bytes of text per token; a higher value is better compression. A held-out split should have a "
        "value close to the training split's."
    )
    return _section("Splits and compression", note, "".join(bars) + _axis("0", f"{end} bytes per token") + table)


def _mixture(mixture: Mapping[str, Any]) -> str:
    targets, actual, epochs = mixture.get("asked") or {}, mixture["actual"], mixture.get("epochs") or {}
    end = min(1.0, math.ceil(10 * max([*actual.values(), *targets.values()])) / 10)
    bars = []
    for name, share in actual.items():
        parts = [f"target {targets[name]:.1%}"] if name in targets else []
        parts += [f"actual {share:.1%}"] + ([f"{epochs[name]:.2f} epochs"] if name in epochs else [])
        tracks = [[("hollow", targets[name] / end)]] if name in targets else []
        bars.append(_bar(place(name), ", ".join(parts), [*tracks, [("blue", share / end)]]))
    key = _key(hollow="target", blue="actual") if targets else ""
    rule = ""
    if mixture.get("alpha") is not None:
        rule = f" Target shares are proportional to size to the power alpha = {mixture['alpha']}."
    note = "Share of each corpus in the training split." + rule
    return _section("Mixture", note, key + "".join(bars) + _axis("0", f"{end:.0%} of the training split"))


def _row(row: Mapping[str, np.ndarray], pieces: Sequence[str], max_length: int) -> str:
    ids, labels = row["input_ids"], row["shift_labels"]
    packed = "position_ids" in row
    positions = row["position_ids"] if packed else np.arange(len(ids))
    bounds = [*np.flatnonzero(positions == 0).tolist(), len(ids)]
    blocks = []
    for number, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        hue = f"{(number * 137.508 + 205) % 360:.1f}"  # golden angle: neighbors differ clearly and no hue repeats
        continued = ", continues in another row" if labels[end - 1] != IGNORED else ""
        title = f"<small>document {number + 1}: {plural(end - start, 'token')}{continued}</small>" if packed else ""
        tokens = "".join(_token(k, ids, labels, positions, pieces) for k in range(start, end))
        blocks.append(f'<div style="--hue: {hue}">{title}{tokens}</div>\n')
    note = (
        f"{len(ids):,} of {max_length:,} positions are filled; the number of each is below its token. The target of a "
        f"colored token is the token after it. {int((labels == IGNORED).sum()):,} of the tokens have no target: they "
        "are struck through and have a dashed border. "
        + ("Each document, or piece of a long one, has its own color and cannot see the others." if packed else "")
    )
    return _section("One row", note, f'<div class="row">{"".join(blocks)}</div>')


def _token(k: int, ids: np.ndarray, labels: np.ndarray, positions: np.ndarray, pieces: Sequence[str]) -> str:
    piece, end = pieces[k], "<br>" if "\n" in pieces[k] else ""
    text = page_text(piece).replace("\n", "&#8629;").replace("\t", "&#8677;") or "&nbsp;"
    title = f"position {positions[k]}, token {ids[k]}"
    if labels[k] == IGNORED:
        return f'<i class="no-target" data-position="{positions[k]}" title="{title}, no target"><s>{text}</s></i>{end}'
    follows = k + 1 < len(ids) and ids[k + 1] == labels[k]
    target = f"target token {labels[k]}" + (f" {pieces[k + 1]!r}" if follows else "")
    return f'<i data-position="{positions[k]}" title="{page_text(f"{title}, {target}")}">{text}</i>{end}'


# --- Pieces of a page --------------------------------------------------------------------------------------------


def _section(title: str, note: str, body: str) -> str:
    return f"<h2>{title}</h2>\n<p>{page_text(note)}</p>\n{body}\n"


def _bar(name: str, description: str, tracks: Iterable[Sequence[tuple[str, float]]]) -> str:
    """Draw a name and its description above bars; each bar is a row of parts (color, share of the width)."""
    html = ""
    for track in tracks:
        parts = "".join(f'<div class="{color}" style="width: {100 * share:.2f}%"></div>' for color, share in track)
        html += f'<div class="track">{parts}</div>'
    return f'<div class="bar"><span><b>{page_text(name)}</b><span>{page_text(description)}</span></span>{html}</div>\n'


def _axis(low: str, high: str) -> str:
    return f'<div class="axis"><span>{page_text(low)}</span><span>{page_text(high)}</span></div>\n'


def _key(**meanings: str) -> str:
    entries = "".join(f'<i class="{color}"></i>{page_text(meaning)}' for color, meaning in meanings.items())
    return f'<div class="key">{entries}</div>\n'


def _count(number: float) -> str:
    number = float(f"{number:.3g}")  # round first: 999,600 is 1 M
    for size, letter in ((10**12, " T"), (10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def _size(count: int) -> str:
    return f"{_count(count)}B" if count >= 10**3 else f"{count} B"


def _round_up(number: int) -> int:
    # Round so that half of the result is an integer too: it is a tick.
    unit = 2 * 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def _log_ticks(low: float, high: float) -> list[int]:
    ticks = [(m, 10**k) for k in range(math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
    few = [m * power for m, power in ticks if low <= m * power <= high]
    return few if len(few) <= 8 else [n for n in few if str(n).startswith("1")]


__all__ = ["report_page"]
