"""Files that are about to be published -> what in them must not be: secrets, traces of this machine, pickles, size."""

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

from ..runs.folder import CODE
from ..utils.key_shapes import find_keys


class Leak(NamedTuple):
    """Something that must not be published; `line` is None where it is the whole file."""

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.what}"


WEIGHTS_LIMIT, LIMIT = 5 * 10**9, 100 * 10**6  # bytes; the first is where weights are cut into shards
SLACK = 10**8  # what a shard's header and its largest tensor may add
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
PICKLE_START = re.compile(rb"\x80[\x02-\x05][\x00-\xff]")  # protocols 2 to 5
# Names of users and machines that many have: they tell nothing, and stand in ordinary texts.
COMMON = {"admin", "debian", "docker", "jenkins", "jupyter", "localhost", "runner", "ubuntu", "vagrant"}
LONG_ENOUGH = 5  # letters of a name that is looked for wherever it stands; a shorter one may be a word

HOMES = r"(?<![\w.])(?:/home/|/Users/|/root/|[A-Za-z]:\\+Users\\+)[\w.@+-]+"
ABSOLUTE = r"(?<![\w.:/~<$*)}-])(?:/(?:[\w.@+-]+/)+[\w.@+-]+|[A-Za-z]:\\+[\w.@+-]+\\+[\w.@+-]+)"
# What a text may hold where it is made by a model or of its words: not every path in it is one of this machine.
OF_DATA = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "metrics.jsonl")
# Where a file quotes the model or its prompt, which name places and people of the data.
SAMPLES = {
    "metrics.jsonl": re.compile(r'(?<="sample": )"(?:[^"\\]|\\.)*+"'),
    "README.md": re.compile(r"^(?:> |ids = tokenizer\().*", re.MULTILINE),
}
PACKAGE = Path(__file__).resolve().parents[1]
OWN_CODE = re.compile(r"(?:configuration|modeling)_scratch_gpt\.\w+")

ESCAPE = re.compile(  # of JSON, Python, JavaScript; of Markdown any character
    r"\\(?:u([\dA-Fa-f]{4})|U([\dA-Fa-f]{8})|u\{([\dA-Fa-f]{1,6})\}|x([\dA-Fa-f]{2})|([nrtbfv]|[0-7]{1,3})|(.))",
    re.DOTALL,
)
DEPTH = 3  # JSON in JSON in JSON
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}+(?:\r?\n[A-Za-z0-9+/_-]++)*+={0,2}")
PIXELS = {b"IDAT", b"PLTE", b"tRNS"}
STRETCHES = re.compile(rb"[\x20-\x7e]{6,}|(?:[\x20-\x7e]\0){6,}|(?:\0[\x20-\x7e]){6,}")  # a person could read them
MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"))
MARKS += ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def find_leaks(folder: Path, files: Iterable[str], known: Iterable[str] = ()) -> list[Leak]:
    """Everything in these files of a folder that must not be published, in their order.

    Args:
        known: names that may stand there, as that of the repository's owner.
    """
    names = _own_names() - set(known)
    places = {str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent)}
    places = {place for place in places if len(Path(place).parts) > 1}
    return [leak for file in files for leak in _find(folder / file, file, names, places)]


def _own_names() -> set[str]:
    host = socket.gethostname()
    found = {host, host.split(".")[0]}
    try:
        found.add(getpass.getuser())
    except (OSError, KeyError, ImportError):  # a user without a name
        pass
    return {name for name in found if name and name.lower() not in COMMON}


@cache
def _own_words() -> set[str]:
    # What stands on every card and in every config: a user called so is not found by it.
    texts = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    return {word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower())}


def _find(path: Path, file: str, names: set[str], places: set[str]) -> Iterator[Leak]:
    is_weights = path.suffix == ".safetensors"
    limit = WEIGHTS_LIMIT + SLACK if is_weights else LIMIT
    if path.stat().st_size > limit:
        yield Leak(file, None, f"{path.stat().st_size:,} bytes, and {limit:,} is the most")
        return
    with path.open("rb") as content:
        start = content.read(9 if is_weights else 8)
        size = int.from_bytes(start[:8], "little") if is_weights else 0  # of the header
        is_right = is_weights and start.endswith(b"{") and size < min(LIMIT, path.stat().st_size)
        is_pickle = PICKLE_START.match(start) or start.startswith(b"PK\x03\x04")
        if path.suffix in PICKLES or (not is_right if is_weights else is_pickle):
            yield Leak(file, None, "no safetensors" if is_weights else "a pickle or an archive, which can run code")
            return
        # of weights the header, which is JSON; numbers follow
        raw = start[8:] + content.read(size - 1) if is_weights else start + content.read()
    if path.suffix == ".py":
        if path.name not in CODE or raw != CODE[path.name].read_bytes():
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
    of_ours = []  # searched for in what the run has written, not in what its data say
    if path.name not in OF_DATA or path.name == "metrics.jsonl":
        of_ours += [("a home folder", re.compile(HOMES))]
    if is_text and path.name not in OF_DATA:  # in binary files some stretch looks like one
        of_ours += [("an absolute path", re.compile(ABSOLUTE))]
    for name in names:
        if (is_text or len(name) >= LONG_ENOUGH) and (path.name not in OF_DATA or path.name == "metrics.jsonl"):
            of_ours.append((f"the name of this machine or its user, {name!r}", re.compile(_shape_of(name))))
    samples = SAMPLES.get(path.name)
    lines: dict[int, str] = {}
    for text in texts:
        for number, what in chain(_secrets(text), _traces(text, patterns, of_ours, samples)):
            lines.setdefault(number if is_text else 1, what)
    for number in sorted(lines):
        yield Leak(file, number, lines[number])


def _shape_of(name: str) -> str:
    own = re.escape(name)
    if name.lower() in _own_words():
        return rf"~{own}(?![\w-])|(?<![\w-]){own}@"
    if len(name) < LONG_ENOUGH:
        return rf"[/\\~]{own}(?![\w-])|(?<![\w-]){own}@|@{own}(?![\w-])"
    return rf"(?<![\w-]){own}(?![\w-])"


# --- Bytes -> texts ----------------------------------------------------------------------------------------------


def _texts(raw: bytes) -> tuple[bool, list[str]]:
    # Whether it is a text, and the text; of anything else the stretches that a person could read.
    try:
        mark = next((encoding for mark, encoding in MARKS if raw.startswith(mark)), None)
        if mark or b"\0" not in raw:
            return True, [raw.decode(mark or "utf-8")]
    except UnicodeDecodeError:
        pass
    found = [stretch.replace(b"\0", b"").decode() for stretch in STRETCHES.findall(raw)]
    # The length before a string, and the field's number before that, may look like letters (TensorBoard's events).
    return False, ["\n".join(stretch[n:] for stretch in found) for n in range(4)]


def _without_pixels(raw: bytes) -> bytes | None:
    # All chunks of a PNG but those of pixels, decompressed where they are compressed; None if it is no whole PNG.
    if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    at, rest, kind = 8, [], b""
    while at + 12 <= len(raw):
        length, kind = int.from_bytes(raw[at : at + 4], "big"), raw[at + 4 : at + 8]
        content, check = raw[at + 8 : at + 8 + length], raw[at + 8 + length : at + 12 + length]
        if (at == 8) != (kind == b"IHDR") or check != zlib.crc32(kind + content).to_bytes(4, "big"):
            return None
        if kind not in PIXELS:
            rest += [content, *_inflated(content)]
        at += 12 + length
        if kind == b"IEND":
            break
    return b"\0".join(rest) if kind == b"IEND" and at == len(raw) else None


def _inflated(content: bytes) -> Iterator[bytes]:
    # zTXt, iTXt and iCCP hold a name, one to some NULs, then zlib's stream
    for match in re.finditer(rb"\0(?=\x78)", content[:400]):
        try:
            yield zlib.decompressobj().decompress(content[match.end() :], LIMIT)
        except zlib.error:
            pass


def _has_other_code(raw: bytes) -> bool:
    # auto_map: {class: "module.Class"}, or a tokenizer's list of them; "repository--module.Class" is a stranger's.
    try:
        found = json.loads(raw).get("auto_map") or {}
    except (ValueError, AttributeError, RecursionError):  # no config: reading it back tells
        return False
    values = found.values() if isinstance(found, dict) else [found]
    return not all(isinstance(value, str) and OWN_CODE.fullmatch(value) for value in values)


# --- Texts -> what they hold -------------------------------------------------------------------------------------


def _secrets(text: str) -> Iterator[tuple[int, str]]:
    # As they stand, where escapes are resolved, and in base64; with the numbers of their lines.
    for number, view in _views(text):
        for start, what in find_keys(view):
            yield number or view.count("\n", 0, start) + 1, what
        for match in BASE64.finditer(view):
            if what := next((what for inside in _decoded(match[0]) for _, what in find_keys(inside)), None):
                yield number or view.count("\n", 0, match.start()) + 1, f"{what} in base64"


def _views(text: str) -> Iterator[tuple[int | None, str]]:
    # The text, and each line of it in which a character is spelled by others (JSON, Python, HTML, Markdown, URLs).
    yield None, text
    for number, line in enumerate(text.split("\n") if re.search(r"[\\&%]", text) else (), 1):
        for _ in range(DEPTH):
            before, line = line, html.unescape(unquote(ESCAPE.sub(_character, line)))
            if line == before:
                break
            yield number, line


def _character(match: re.Match) -> str:
    if number := match[1] or match[2] or match[3] or match[4]:
        return chr(min(int(number, 16), 0x10FFFF))
    return "\n" if match[5] else match[6]


def _decoded(stretch: str) -> Iterator[str]:
    plain = re.sub(r"[\r\n=]", "", stretch).translate(str.maketrans("-_", "+/"))
    for start in range(4):  # letters before it may belong to it or not
        piece = plain[start:]
        piece = piece[: len(piece) - (len(piece) % 4 == 1)]
        content = base64.b64decode(piece + "=" * (-len(piece) % 4))
        yield content.decode("latin-1")
        if b"\0" in content:  # UTF-16, of either order
            yield from (content[n:].decode("utf-16-le", "replace") for n in (0, 1))


def _traces(text: str, patterns, of_ours, samples: re.Pattern | None) -> Iterator[tuple[int, str]]:
    for searched, among in ((text, patterns), (samples.sub("", text) if samples else text, of_ours)):
        for number, line in enumerate(searched.split("\n"), 1):
            if what := next((what for what, pattern in among if pattern.search(line)), None):
                yield number, what


__all__ = ["LIMIT", "PICKLES", "WEIGHTS_LIMIT", "Leak", "find_leaks"]
