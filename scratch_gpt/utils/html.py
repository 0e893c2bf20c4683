"""Make self-contained HTML pages: no scripts, no requests, light or dark as the reader prefers."""

import unicodedata
from html import escape
from typing import Any


PAGE_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d232b; --soft: #5c6773; --line: #d9dee4; --track: #eef1f4;
  --blue: #3f7fbf; --red: #d1495b; --gold: #a86f00; --tint: 86%; --shade: 62%; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ec; --soft: #9aa5b1; --line: #343c46;
  --track: #232a32; --blue: #5d9bd8; --red: #e2667a; --gold: #e0ae4e; --tint: 27%; --shade: 48%; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.6rem 0 0; }
h3 { font-size: 1rem; margin: 0; } p { margin: .2rem 0 .9rem; color: var(--soft); max-width: 46rem; }
"""


def page(title: str, style: str, body: str) -> str:
    """Return the page as HTML. `body` and `style` are inserted unchanged; data in them must go through `page_text`."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{page_text(title)}</title>\n<style>{PAGE_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{page_text(title)}</h1>\n{body}</body>\n</html>\n"
    )


def page_text(value: Any) -> str:
    """Return data as escaped text; \\r ends a line too, and characters that HTML forbids become U+FFFD."""
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    clean = (c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)
    return escape("".join(clean))


__all__ = ["page", "page_text"]
