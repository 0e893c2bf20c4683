"""Choose the library that encodes documents: gigatoken if it is installed and gives the same ids, or tokenizers.

gigatoken (the extra "fast") runs in a process of its own (fast_worker.py). tokenizers is the reference: before
gigatoken is used, both encode a sample of the data, and a single different id rules it out. If its process ends,
tokenizers encodes the rest.
"""

import json
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from heapq import nlargest
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..utils.extras import require_extra
from . import fast_worker
from .tokenizer import encode_batch, split_text


ENCODERS = ("auto", "tokenizers", "gigatoken")
SAMPLE_BYTES = 2**20  # of the texts that both libraries encode
SCANNED_BYTES = 2**23  # of the texts that these are chosen from
UNUSUAL = 20  # lines of each unusual kind in the sample
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028\u2029\ufeff\ufffd]")


class WorkerStopped(Exception):
    """The process of gigatoken has ended, or has refused a request."""


class Worker:
    """A process that runs fast_worker.py."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(Path(fast_worker.__file__))]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **pipes)
        self._close = weakref.finalize(self, _close, self.process)

    def ask(self, request: dict[str, Any], *contents: bytes) -> list[bytes]:
        """Return the byte strings of the reply; raise `WorkerStopped` if there is none."""
        requests, replies = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)
        try:
            fast_worker.send(requests, request, *contents)
            reply, parts = fast_worker.receive(replies)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise WorkerStopped("its process has ended") from error
        if "error" in reply:
            raise WorkerStopped(reply["error"])
        return parts

    def close(self) -> None:
        """End the process."""
        self._close()


def _close(process: subprocess.Popen) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # a request that was not sent is still in the buffer
            cast(BinaryIO, pipe).close()
    process.wait()


class Encoder:
    """Encode texts as ids without special tokens: `encoder(texts)` returns the ids of each text.

    The library is chosen at the first call.

    Args:
        name: one of ENCODERS; "auto" is gigatoken if it is installed.
        sample: return texts of the data, spread over all of them, with which gigatoken is compared before it is used;
            at most SCANNED_BYTES are read.

    Raises:
        ValueError: the name is unknown.
        ImportError: the library with this name is not installed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "auto",
        sample: Callable[[], Iterable[str]] | None = None,
    ):
        check_encoder(name)
        self.tokenizer, self.name = tokenizer, name
        self._sample = sample
        self._library: str | None = None  # not chosen yet
        self._reason: str | None = None
        self._content: bytes | None = None  # the tokenizer for gigatoken
        self._worker: Worker | None = None
        self._owner: int | None = None  # the process that has started the worker

    def __getstate__(self) -> dict[str, Any]:
        # What decides the ids and the library; another process starts its own worker.
        return {**self.__dict__, "_sample": None, "_worker": None, "_owner": None}

    def __call__(self, texts: list[str]) -> Sequence[Sequence[int] | np.ndarray]:
        if self._library is None:
            self._library = self._choose()
        if self._library == "gigatoken":
            try:
                return self._encode(texts)
            except WorkerStopped as error:
                self._fall_back(f"gigatoken stopped ({error})")
            except UnicodeEncodeError:
                pass  # encode_batch explains what is wrong with the text
        return encode_batch(self.tokenizer, texts)

    @property
    def record(self) -> dict[str, str] | None:
        """Return the manifest's entry: the library, its version, and why it is not gigatoken; None before its use."""
        if self._library is None:
            return None
        reason = {} if self._reason is None else {"reason": self._reason}
        return {"name": self._library, "version": version(self._library), **reason}

    def _choose(self) -> str:
        if self.name == "tokenizers" or find_spec("gigatoken") is None:
            return "tokenizers"
        self._content = reduced_tokenizer(self.tokenizer)
        if self._content is None:
            return "tokenizers"
        with ThreadPoolExecutor(1, "start") as pool:
            starting = pool.submit(self._start)
            sample = unusual_first([] if self._sample is None else self._sample(), self.tokenizer.all_special_tokens)
            call = pool.submit(encode_batch, self.tokenizer, sample)
            try:
                starting.result()
                given = self._encode(sample)
            except (WorkerStopped, UnicodeEncodeError):  # gigatoken cannot do this tokenizer, or no library a text
                return "tokenizers"
            expected = call.result()
        different = sum(ids.tolist() != other for ids, other in zip(given, expected, strict=True))
        if different:
            self._fall_back(f"gigatoken gives other ids for {different} of {len(sample)} sampled texts")
        return self._library or "gigatoken"

    def _fall_back(self, reason: str) -> None:
        self._library, self._reason = "tokenizers", reason
        if os.environ.get("RANK", "0") == "0":
            print(f"{reason}: the texts are encoded by tokenizers.")

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        # Long texts are cut at the same places as in encode_batch, so that the ids are the same.
        pieces = [[*split_text(text)] for text in texts]
        encoded = [piece.encode() for of_text in pieces for piece in of_text]
        lengths, ids = self._ask({"do": "encode"}, *fast_worker.join(encoded))
        arrays = fast_worker.split(lengths, np.frombuffer(ids, dtype=np.uint32))
        if len(pieces) == len(arrays):
            return arrays
        remaining = iter(arrays)
        return [np.concatenate([next(remaining) for _ in of_text]) for of_text in pieces]

    def _ask(self, request: dict[str, Any], *contents: bytes) -> list[bytes]:
        if self._worker is None or self._owner != os.getpid():  # a forked process must not share the pipes
            self._start()
        return cast(Worker, self._worker).ask(request, *contents)

    def _start(self) -> None:
        self._worker, self._owner = Worker(), os.getpid()
        self._worker.ask({"do": "load"}, cast(bytes, self._content))


def check_encoder(name: str) -> None:
    """Raise a ValueError if no encoder has this name, and an ImportError if it is not installed."""
    if name not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, not {name!r}.")
    if name == "gigatoken":
        require_extra("fast", ("gigatoken",))


def reduced_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """Return the tokenizer.json for gigatoken, without special tokens, so that their spellings are plain text.

    None if gigatoken may encode differently: only byte-level BPE without a normalizer and with special tokens alone
    added to its vocabulary is supported.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    model: Any = tokenizer.backend_tokenizer.model
    if not isinstance(model, BPE) or model.byte_fallback or model.dropout:
        return None
    # The vocabulary and the merges come last; they are large, and need no change.
    head, key, merges = tokenizer.backend_tokenizer.to_str().partition(',"model":{')
    content = json.loads(head + "}")
    if content["normalizer"] or any(not token["special"] for token in content["added_tokens"]):
        return None
    content |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return f"{json.dumps(content)[:-1]}{key}{merges}".encode()


def unusual_first(texts: Iterable[str], special_tokens: Iterable[str]) -> list[str]:
    """Return at least SAMPLE_BYTES of these texts, or all: unusual lines first, then passages of equal size."""
    scanned, size = [], 0
    for text in texts:
        scanned.append(text[: SCANNED_BYTES - size])
        size += len(scanned[-1])
        if size >= SCANNED_BYTES:
            break
    lines = [line for text in scanned for line in text.split("\n")]
    foreign = [line for line in lines if not line.isascii()]
    special = [token for token in special_tokens if any(token in text for text in scanned)]
    sample = [
        *nlargest(UNUSUAL, lines, key=len),
        *nlargest(UNUSUAL, foreign, key=lambda line: len(line.encode(errors="replace")) - len(line)),
        *islice((line for token in special for line in lines if token in line), UNUSUAL),
        *islice(filter(CONTROL.search, chain(foreign, lines)), UNUSUAL),
        *special_tokens,
        "",
    ]
    joined = "\n\n".join(scanned)
    share = min(1.0, SAMPLE_BYTES / max(1, len(joined)))
    step = 2**14  # characters between the starts of two passages
    return sample + [joined[start : start + max(1, round(share * step))] for start in range(0, len(joined), step)]


def spread(count: int, get: Callable[[int], str], most: int = 512) -> Iterable[str]:
    """Yield `get(n)` for at most `most` numbers below `count`, spread evenly."""
    step = max(1, count // most)
    return (get(n) for n in range(0, count, step))


__all__ = ["ENCODERS", "Encoder", "Worker", "WorkerStopped", "check_encoder", "spread"]
