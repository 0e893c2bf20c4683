"""Files that are about to be published -> what in them must not be: secrets, traces of this machine, pickles, size."""

import getpass
import json
import re
import socket
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from .key_shapes import kinds_of_keys


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
        if is_weights:  # numbers, below a header in JSON
            header = json.loads(start[8:] + content.read(size - 1))
            text, lines = True, [json.dumps({"__metadata__": header.get("__metadata__"), "names": [*header]})]
        else:
            text, lines = _lines(start + content.read())
    patterns = [("a path of this machine", re.compile(re.escape(place) + r"(?![\w-])")) for place in places]
    patterns += [("a home folder", re.compile(HOMES))]
    if text and path.name not in OF_DATA:  # in a picture's numbers some stretch looks like one
        patterns += [("an absolute path", re.compile(ABSOLUTE))]
    for name in names:
        near = rf"(?:[/\\~]{re.escape(name)}(?![\w-])|(?<![\w-]){re.escape(name)}@|@{re.escape(name)}(?![\w-]))"
        shape = rf"(?<![\w-]){re.escape(name)}(?![\w-])" if len(name) >= LONG_ENOUGH else near
        by_chance = not text and len(name) < LONG_ENOUGH
        if not by_chance and (path.name not in OF_DATA or path.name == "metrics.jsonl"):
            patterns.append((f"the name of this machine or its user, {name!r}", re.compile(shape)))
    for number, line in enumerate(lines, 1):
        named = (what for what, pattern in patterns if pattern.search(line))
        if what := next(chain(kinds_of_keys(line), named), None):
            yield Leak(file, number, what)


def _lines(raw: bytes) -> tuple[bool, list[str]]:
    # Whether it is a text, and its lines; of anything else the stretches that a person could read.
    try:
        if b"\0" not in raw:
            return True, raw.decode().split("\n")
    except UnicodeDecodeError:
        pass
    return False, [b"\n".join(re.findall(rb"[\x20-\x7e]{6,}", raw)).decode()]


__all__ = ["LIMIT", "PICKLES", "WEIGHTS_LIMIT", "Leak", "find_leaks"]
