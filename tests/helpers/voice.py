"""Count constructions that make a reader stop, in docstrings, comments, messages, names of tests and Markdown.

    python tests/helpers/voice.py [FOLDER_OR_FILE ...]

prints each place and the count per 1,000 words of each tree. None of the constructions is wrong English; each marks a
sentence that usually has a plainer form.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


REPO = Path(__file__).resolve().parents[2]
TREES = ("scratch_gpt", "training", "tests", "hub_card", ".github", "README.md", "Makefile")
SUFFIXES = (".py", ".md")

CONSTRUCTIONS = {
    "is no, are none": r"(?:is|are|was|were|be) (?:no|none)(?! longer| more| less| fewer|t)\b|that is none",
    "whole": r"(?<!the )(?<!a )(?:is|are|was|were|stays?|stayed|none|newest|intact|one) whole\b|whole (?:one|not)\b",
    "go on": r"\b(?:go|goes|going|went|gone|gon) on\b(?! (?:to|the|a)\b)",
    "noun clause with what": r"(?:^|[.:;(] )(?:What|Who|Whose|Whoever|Whatever) (?!is .*\?|does .*\?|[^.]*\?)",
    "what as a noun": (
        r"\b(?:of|by|from|with|for|to|in|than|and|as|is|on|at|into|not|but|all) what (?!to\b|each\b|extent|it costs)"
    ),
    "said": (
        r"\b(?:is|are|was|be|and|been) said\b|\bsaid (?:aloud|loudly|of|once)\b|\bsays? so\b|\bis told\b"
        r"|what to say"
    ),
    "so many": r"\bso (?:many|few|large|little|small|short|long)\b(?! (?:as|that))",
    "but for": r"\bbut (?:for|in|of|by)\b",
    "asked": r"\basked\b|\basks (?:nothing|for nothing)\b|\basks of\b",
    "nobody": r"(?i)\b(?:nobody|anybody|whoever|whose|somebody|everybody)\b",
    "anew": r"\b(?:anew|beside|likewise|by heart|aloud|to the byte|to the bit|alike)\b",
    "of its own": r"\b(?:of (?:its|his|our|their|one's|your|my) own|by (?:itself|themselves)|alone)\b",
    "stand": r"\b(?:stands|stood|stand)\b",
    "there is": (
        r"\bwhere (?:there (?:is|are)|a|an|none|no|it|nothing)\b|\bthat there (?:is|are)\b"
        r"|\bthere (?:is|are) (?:none|such)\b"
    ),
    "left out": r"\b(?:leave|leaves|left|leaving) (?:it |them |\w+ )?out\b",
    "private word": (
        r"\b(?:settle|settles|settled|carry out|carries out|rehearse|rehearsal|farewell|gift|gifts|stranger|strangers"
        r"|a door|doors?|sitting|sittings|citizen)\b"
    ),
    "has to be": r"\b(?:has|have|had) to be\b",
    "the most": (
        r"\bthe (?:most|least)\b(?! (?:common|likely|recent|frequent|important|similar|frequently|probable))"
        r"|\bas many\b"
    ),
    "inverted": r"(?:^|[.:;] )(?:Of|By|To|In|From|Among|With) (?:it|them|these|those|this|that|all|whom|which)\b",
}
PATTERN = {name: re.compile(pattern, re.MULTILINE) for name, pattern in CONSTRUCTIONS.items()}
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
CODE_SPANS = re.compile(r"^```[\s\S]*?^```|`[^`\n]+`|\]\([^)]+\)|https?://\S+|^    .*$|<!--[\s\S]*?-->", re.MULTILINE)
GENERATED = re.compile(r"<!-- \S+: written by .*?<!-- end -->", re.DOTALL)


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers and prose of a file: docstrings, comments, messages and names of tests, or Markdown."""
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".md" or file.name == "README.md":
        blank = GENERATED.sub(lambda found: "\n" * found[0].count("\n"), source)
        blank = CODE_SPANS.sub(lambda found: "\n" * found[0].count("\n") or " x ", blank)
        yield from paragraphs(blank)
    elif file.suffix == ".py":
        yield from comments(source)
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
                yield node.lineno, re.sub(r"`[^`\n]+`|https?://\S+", " x ", node.value)
            elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.lineno, node.name.removeprefix("test_").replace("_", " ")
    else:
        yield from comments(source)


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of a text with the numbers of their first lines."""
    line = 1
    for block in re.split(r"(\n\s*\n)", text):
        if block.strip():
            yield line, " ".join(block.split())
        line += block.count("\n")


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of a source, neighboring lines joined."""
    first, last, parts = 0, -1, []
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError, IndentationError):
        tokens = []
        for number, text in enumerate(source.splitlines(), 1):
            if text.startswith("# "):
                yield number, text[2:]
    for token in tokens:
        if token.type == tokenize.COMMENT:
            number = token.start[0]
            if number != last + 1 and parts:
                yield first, " ".join(parts)
                parts = []
            first = first if parts else number
            last = number
            parts.append(token.string.lstrip("#: "))
    if parts:
        yield first, " ".join(parts)


def findings(file: Path) -> tuple[int, list[tuple[int, str, str]]]:
    """Count the words of a file's prose; list (line, construction, context) of each construction in it."""
    words, places = 0, []
    for number, text in texts(file):
        words += len(WORD.findall(text))
        flat = re.sub(r"[ \t]*\n[ \t]*", " ", text)
        for name, pattern in PATTERN.items():
            for found in pattern.finditer(flat):
                context = flat[max(0, found.start() - 30) : found.end() + 30]
                places.append((number, name, context))
    return words, places


def files_of(tree: Path) -> list[Path]:
    """List the files with prose below a folder, except this one with its patterns; return a file as it is."""
    if tree.is_file():
        return [tree]
    files = (file for file in tree.rglob("*") if file.suffix in SUFFIXES and "__pycache__" not in file.parts)
    return sorted(file for file in files if file.resolve() != Path(__file__).resolve())


if __name__ == "__main__":
    kinds = Counter()
    for tree in [Path(name) for name in sys.argv[1:]] or [REPO / name for name in TREES]:
        words, places = 0, []
        for file in files_of(tree):
            count, marks = findings(file)
            words += count
            places += [(file, *mark) for mark in marks]
        for file, number, name, context in places:
            kinds[name] += 1
            print(f"{file}:{number}: [{name}] {context}")
        print(f"== {tree}: {len(places)} in {words:,} words, {1e3 * len(places) / max(1, words):.1f} per 1,000")
    print(dict(kinds.most_common()))
