"""Encode texts and train byte-level BPE with gigatoken, in a process of its own.

The library prints its progress, and a crash must not end the run that uses it. `encoders.py` starts this file as a
script: it imports nothing else of this package. A request and its reply are a line of JSON, which gives the sizes of
the byte strings that follow.

    {"do": "load"}   the tokenizer.json                     -> {}
    {"do": "encode"} lengths of the texts (int64), texts    -> lengths of the ids (int64), ids (uint32)
    {"do": "train", "vocab_size": N} texts between 0xFF     -> lengths of the merged pairs (int64), their bytes
"""

import json
import os
import signal
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np


LOADED_BYTES = 2**26  # of text; then the tokenizer is loaded again, because it keeps the ids of every word it has seen


def send(stream: BinaryIO, header: dict[str, Any], *contents: bytes | memoryview) -> None:
    """Write a header and byte strings."""
    stream.write(json.dumps({**header, "sizes": [len(content) for content in contents]}).encode() + b"\n")
    for content in contents:
        stream.write(content)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], list[bytes]]:
    """Read a header and its byte strings; raise an EOFError if the stream ends."""
    header = stream.readline()
    if not header.endswith(b"\n"):
        raise EOFError
    content = json.loads(header)
    parts = [stream.read(size) for size in content["sizes"]]
    if list(map(len, parts)) != content["sizes"]:
        raise EOFError
    return content, parts


def join(parts: Sequence[Any]) -> tuple[bytes, bytes]:
    """Return the lengths of some byte strings or arrays as int64, and their contents, both as bytes."""
    return np.array([len(part) for part in parts], dtype=np.int64).tobytes(), b"".join(parts)


def split(lengths: bytes, content: bytes | np.ndarray) -> list[Any]:
    """Return the parts that `join` has joined."""
    ends = np.cumsum(np.frombuffer(lengths, dtype=np.int64)).tolist()
    return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def answer(request: dict[str, Any], contents: list[bytes], state: dict[str, Any]) -> list[bytes]:
    """Return the byte strings of the reply to a request; `state` holds the loaded tokenizer."""
    from gigatoken import gigatoken_rs  # pyright: ignore[reportMissingImports] (an extra)

    if request["do"] == "load":
        state |= {"content": contents[0], "tokenizer": gigatoken_rs.load_hf_json(contents[0]), "encoded": 0}
        return []
    if request["do"] == "encode":
        if state["encoded"] > LOADED_BYTES:
            state |= {"tokenizer": gigatoken_rs.load_hf_json(state["content"]), "encoded": 0}
        state["encoded"] += len(contents[1])
        return [*join([state["tokenizer"].encode(text) for text in split(*contents)])]
    _, merges = gigatoken_rs.train_bpe(contents[0], request["vocab_size"], [], separator=b"\xff")
    return [*join([part for pair in merges for part in pair])]


def main() -> None:
    """Answer requests on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of the process that started this one
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "r+b") as nothing:
        for number in (0, 1, 2):
            os.dup2(nothing.fileno(), number)
    state: dict[str, Any] = {}
    while True:
        try:
            request, contents = receive(requests)
        except EOFError:
            return
        try:
            reply = {}, answer(request, contents, state)
        except BaseException as error:  # a panic of Rust code is not an Exception
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}, []
        send(replies, reply[0], *reply[1])


if __name__ == "__main__":
    main()
