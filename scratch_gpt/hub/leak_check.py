"""Search files for content that must not be published: secrets, traces of this machine, pickles, oversized files."""

import base64
import codecs
import getpass
import html
import json
import re
import socket
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from ..runs.folder import METRICS, MODEL_CODE
from ..utils.key_shapes import find_keys


class Leak(NamedTuple):
    """Something that must not be published; `line` is None if the problem concerns the complete file."""

    file: str
    line: int | None
    problem: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.problem}"


NamedPatterns = list[tuple[str, re.Pattern[str]]]
WEIGHTS_LIMIT, LIMIT = 5 * 10**9, 100 * 10**6  # bytes; weights are split into shards at the first
SHARD_SLACK = 10**8  # bytes that a shard's header and its largest tensor may add
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
PICKLE_START = re.compile(rb"\x80[\x02-\x05][\x00-\xff]")  # protocols 2 to 5
# Common names of users and machines. They identify no person, and occur in ordinary texts.
COMMON_NAMES = {"admin", "debian", "docker", "jenkins", "jupyter", "localhost", "runner", "ubuntu", "vagrant"}
MIN_NAME_LENGTH = 5  # of a name that is searched for everywhere; a shorter one may be an ordinary word

HOMES = r"(?<![\w.])(?:/home/|/Users/|/root/|[A-Za-z]:\\+Users\\+)[\w.@+-]+"
ABSOLUTE = r"(?<![\w.:/~<$*)}-])(?:/(?:[\w.@+-]+/)+[\w.@+-]+|[A-Za-z]:\\+[\w.@+-]+\\+[\w.@+-]+)"
# Files with text from the data or from a model: not every path in them belongs to this machine.
DATA_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", METRICS)
# Quotations of the model or its prompt, which may name places and people from the data.
SAMPLES = {
    METRICS: re.compile(r'(?<="sample": )"(?:[^"\\]|\\.)*+"'),
    "README.md": re.compile(r"^(?:> |ids = tokenizer\().*", re.MULTILINE),
}
PACKAGE = Path(__file__).resolve().parents[1]
OWN_CODE = re.compile(r"(?:configuration|modeling)_scratch_gpt\.\w+")

ESCAPE = re.compile(  # of JSON, Python and JavaScript; in Markdown any character may be escaped
    r"\\(?:u([\dA-Fa-f]{4})|U([\dA-Fa-f]{8})|u\{([\dA-Fa-f]{1,6})\}|x([\dA-Fa-f]{2})|([nrtbfv]|[0-7]{1,3})|(.))",
    re.DOTALL,
)
DEPTH = 3  # levels of JSON inside JSON
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}+(?:\r?\n[A-Za-z0-9+/_-]++)*+={0,2}")
PIXELS = {b"IDAT", b"PLTE", b"tRNS"}
STRETCHES = re.compile(rb"[\x20-\x7e]{6,}|(?:[\x20-\x7e]\0){6,}|(?:\0[\x20-\x7e]){6,}")  # readable text
UTF32_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"))
UTF32_MARKS += ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def find_leaks(folder: Path, files: Iterable[str], allowed_names: Iterable[str] = ()) -> list[Leak]:
    """Return everything in these files of a folder that must not be published, ordered by file.

    Args:
        allowed_names: names that may occur, such as the repository owner's.
    """
    names = _own_names() - set(allowed_names)
    paths = {path for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 1}
    return [leak for file in files for leak in _leaks_of(folder / file, file, names, set(map(str, paths)))]


def _own_names() -> set[str]:
    host = socket.gethostname()
    names = {host, host.split(".")[0]}
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError, ImportError):  # a user without a name
        pass
    return {name for name in names if name and name.lower() not in COMMON_NAMES}


@cache
def _own_words() -> set[str]:
    # The words of every card and config. If a user's name is one of them, it is searched for more narrowly.
    texts = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    return {word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower())}


def _leaks_of(path: Path, file: str, names: set[str], places: set[str]) -> Iterator[Leak]:
    is_weights = path.suffix == ".safetensors"
    limit = WEIGHTS_LIMIT + SHARD_SLACK if is_weights else LIMIT
    if path.stat().st_size > limit:
        yield Leak(file, None, f"{path.stat().st_size:,} bytes; at most {limit:,} are allowed")
        return
    with path.open("rb") as content:
        start = content.read(9 if is_weights else 8)
        size = int.from_bytes(start[:8], "little") if is_weights else 0  # of the header
        is_safetensors = is_weights and start.endswith(b"{") and size < min(LIMIT, path.stat().st_size)
        is_pickle = PICKLE_START.match(start) or start.startswith(b"PK\x03\x04")
        if path.suffix in PICKLES or (not is_safetensors if is_weights else is_pickle):
            yield Leak(file, None, "no safetensors" if is_weights else "a pickle or an archive, which can run code")
            return
        # for weights only the header, which is JSON
        raw = start[8:] + content.read(size - 1) if is_weights else start + content.read()
    if path.suffix == ".py":
        if path.name not in MODEL_CODE or raw != MODEL_CODE[path.name].read_bytes():
            yield Leak(file, None, "code that is not the installed package's")
        return
    if path.name in ("config.json", "tokenizer_config.json") and _has_other_code(raw):
        yield Leak(file, None, "auto_map names code that is not the installed package's")
    is_picture = path.suffix == ".png"
    if is_picture and (raw := _without_pixels(raw)) is None:
        yield Leak(file, None, "not a PNG picture")
        return
    is_text, texts = _texts(raw)

    patterns = [("a path of this machine", re.compile(re.escape(place) + r"(?![\w-])")) for place in places]
    own_patterns = []  # searched for in the run's own texts, not in quotations of its data
    if path.name not in DATA_FILES or path.name == METRICS:
        own_patterns += [("a home folder", re.compile(HOMES))]
    if is_text and path.name not in DATA_FILES:  # binary files may contain bytes that look like one
        own_patterns += [("an absolute path", re.compile(ABSOLUTE))]
    for name in names:
        if (is_text or len(name) >= MIN_NAME_LENGTH) and (path.name not in DATA_FILES or path.name == METRICS):
            own_patterns.append((f"the name of this machine or its user, {name!r}", re.compile(_name_pattern(name))))
    samples = SAMPLES.get(path.name)
    lines: dict[int, str] = {}
    for text in texts:
        for number, problem in chain(_secrets(text), _traces(text, patterns, own_patterns, samples)):
            lines.setdefault(number if is_text else 1, problem)
    for number in sorted(lines):
        yield Leak(file, number, lines[number])


def _name_pattern(name: str) -> str:
    word = re.escape(name)
    if name.lower() in _own_words():
        return rf"~{word}(?![\w-])|(?<![\w-]){word}@"
    if len(name) < MIN_NAME_LENGTH:
        return rf"[/\\~]{word}(?![\w-])|(?<![\w-]){word}@|@{word}(?![\w-])"
    return rf"(?<![\w-]){word}(?![\w-])"


# --- Bytes -> texts ----------------------------------------------------------------------------------------------


def _texts(raw: bytes) -> tuple[bool, list[str]]:
    # Return whether it is text, and the text; for anything else the readable parts.
    try:
        mark = next((encoding for mark, encoding in UTF32_MARKS if raw.startswith(mark)), None)
        if mark or b"\0" not in raw:
            return True, [raw.decode(mark or "utf-8")]
    except UnicodeDecodeError:
        pass
    stretches = [stretch.replace(b"\0", b"").decode() for stretch in STRETCHES.findall(raw)]
    # The length and the field number in front of a string may look like letters (TensorBoard's events).
    return False, ["\n".join(stretch[n:] for stretch in stretches) for n in range(4)]


def _without_pixels(raw: bytes) -> bytes | None:
    # Return all chunks of a PNG except the pixels, decompressed; None if it is not a complete PNG.
    if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    start, parts, kind = 8, [], b""
    while start + 12 <= len(raw):
        length, kind = int.from_bytes(raw[start : start + 4], "big"), raw[start + 4 : start + 8]
        content, check = raw[start + 8 : start + 8 + length], raw[start + 8 + length : start + 12 + length]
        if (start == 8) != (kind == b"IHDR") or check != zlib.crc32(kind + content).to_bytes(4, "big"):
            return None
        if kind not in PIXELS:
            parts += [content, *_inflated(content)]
        start += 12 + length
        if kind == b"IEND":
            break
    return b"\0".join(parts) if kind == b"IEND" and start == len(raw) else None


def _inflated(content: bytes) -> Iterator[bytes]:
    # zTXt, iTXt and iCCP hold a name, one or more NULs, then zlib's stream
    for match in re.finditer(rb"\0(?=\x78)", content[:400]):
        try:
            yield zlib.decompressobj().decompress(content[match.end() :], LIMIT)
        except zlib.error:
            pass


def _has_other_code(raw: bytes) -> bool:
    # auto_map: {class: "module.Class"}, or a tokenizer's list of them; "repository--module.Class" is foreign code.
    try:
        auto_map = json.loads(raw).get("auto_map") or {}
    except (ValueError, AttributeError, RecursionError):  # not a config; reading it back reports that
        return False
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    return not all(isinstance(value, str) and OWN_CODE.fullmatch(value) for value in values)


# --- Texts -> secrets and traces ---------------------------------------------------------------------------------


def _secrets(text: str) -> Iterator[tuple[int, str]]:
    # Search the text as it is, with escapes resolved, and in base64; yield line numbers and kinds.
    for number, view in _views(text):
        for start, kind in find_keys(view):
            yield number or view.count("\n", 0, start) + 1, kind
        for match in BASE64.finditer(view):
            if kind := next((kind for inside in _decoded(match[0]) for _, kind in find_keys(inside)), None):
                yield number or view.count("\n", 0, match.start()) + 1, f"{kind} in base64"


def _views(text: str) -> Iterator[tuple[int | None, str]]:
    # Yield the text, and each line with escaped characters (JSON, Python, HTML, Markdown, URLs) unescaped.
    yield None, text
    for number, line in enumerate(text.split("\n") if re.search(r"[\\&%]", text) else (), 1):
        for _ in range(DEPTH):
            before, line = line, html.unescape(unquote(ESCAPE.sub(_character, line)))
            if line == before:
                break
            yield number, line


def _character(match: re.Match[str]) -> str:
    if number := match[1] or match[2] or match[3] or match[4]:
        return chr(min(int(number, 16), 0x10FFFF))
    return "\n" if match[5] else match[6]


def _decoded(stretch: str) -> Iterator[str]:
    plain = re.sub(r"[\r\n=]", "", stretch).translate(str.maketrans("-_", "+/"))
    for start in range(4):  # the letters in front may or may not belong to it
        piece = plain[start:]
        piece = piece[: len(piece) - (len(piece) % 4 == 1)]
        content = base64.b64decode(piece + "=" * (-len(piece) % 4))
        yield content.decode("latin-1")
        if b"\0" in content:  # UTF-16, in either byte order
            yield from (content[n:].decode("utf-16-le", "replace") for n in (0, 1))


def _traces(
    text: str, patterns: NamedPatterns, own_patterns: NamedPatterns, samples: re.Pattern[str] | None
) -> Iterator[tuple[int, str]]:
    own_text = samples.sub("", text) if samples else text
    for searched, named_patterns in ((text, patterns), (own_text, own_patterns)):
        for number, line in enumerate(searched.split("\n"), 1):
            if problem := next((name for name, pattern in named_patterns if pattern.search(line)), None):
                yield number, problem


__all__ = ["LIMIT", "PICKLES", "WEIGHTS_LIMIT", "Leak", "find_leaks"]
