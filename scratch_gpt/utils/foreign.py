"""Read untrusted bytes, run untrusted patterns and print untrusted text safely.

one_error      any error of a library -> one ValueError that names the failed action
time_limit     work that takes too long -> a ValueError
read_json      a file -> an object of the expected type
check_text     half a surrogate pair -> a ValueError
FileChanged    raised for a file that changes while a run reads it
shown          text -> text that a terminal prints without obeying control characters
"""

import json
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


# Control characters except tab and new line, marks that change the direction of text, halves of surrogate pairs.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HALVES = re.compile("[\ud800-\udfff]")
JSON_TYPE_NAMES = {dict: "an object", list: "a list"}


class FileChanged(ValueError):
    """Raised if a file has changed since a run began to read it."""


@contextmanager
def one_error(action: str, explain: Callable[[BaseException], str] | None = None) -> Iterator[None]:
    """Raise a ValueError `action: reason` for any error in the body.

    A library that reads untrusted bytes raises many kinds of errors: its own classes, a RecursionError, a bare
    Exception, and a panic of Rust code, which is not an Exception. KeyboardInterrupt, SystemExit and GeneratorExit
    are raised unchanged.

    Args:
        explain: returns the reason in one line, instead of `reason`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ValueError(f"{action}: {(explain or reason)(error)}") from error


def reason(error: BaseException) -> str:
    """Return an error's message in one line of at most 300 characters."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply."
    text = " ".join(str(error).split())[:300]
    is_cryptic = not text or isinstance(error, (LookupError, TypeError, AttributeError))
    return f"{type(error).__name__}: {text}".removesuffix(": ") if is_cryptic else text


@contextmanager
def time_limit(seconds: float, subject: str) -> Iterator[None]:
    """Raise a ValueError if the body takes longer: a template or a regular expression may never finish.

    It interrupts Python and its `re` in the main thread, on a system with timers (not Windows). Elsewhere it does
    nothing.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"{subject} takes longer than {seconds:g} seconds and was stopped. Simplify it.")

    start, handler = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeoutError as error:
        raise ValueError(str(error)) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:  # restart the timer of an outer limit
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), 1e-3))


def check_regular(path: Path) -> None:
    """Raise a ValueError for a FIFO, a device or a broken link: reading one could wait forever."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a regular file. Give a file that can be read more than once.")


def read_foreign_text(path: Path) -> str:
    """Return the text of a regular file; raise a ValueError if it is not a regular file or not UTF-8."""
    check_regular(path)
    return path.read_text(encoding="utf-8")


def read_json(path: Path, kind: type = dict) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: it cannot be read, or its content is not a `kind` (dict or list).
    """
    check_regular(path)
    with one_error(f"{path} cannot be read"):
        return parse_json(path.read_text(encoding="utf-8"), kind)


def parse_json(text: str, kind: type = dict) -> Any:
    """Return the content of a JSON text; raise the errors of `json.loads`, or a ValueError if it is not a `kind`."""
    content = json.loads(text)
    if not isinstance(content, kind):
        raise ValueError(f"it holds {type(content).__name__}, not {JSON_TYPE_NAMES[kind]}.")
    return content


def check_text(text: str, subject: str) -> None:
    """Raise a ValueError for half of a surrogate pair (from JSON or a shell), which no encoding can write."""
    if half := HALVES.search(text):
        near = shown(text[max(0, half.start() - 10) : half.end() + 10])
        raise ValueError(f"{subject} is not valid Unicode at '{near}': it holds half of a character. Correct it.")


def shown(text: str) -> str:
    """Return text that is safe to print: control characters and invalid characters become escapes.

    Example:
        >>> print(shown("red \\x1b[31m text"))
        red \\x1b[31m text
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


__all__ = [
    "FileChanged",
    "check_regular",
    "check_text",
    "one_error",
    "parse_json",
    "read_json",
    "reason",
    "shown",
    "time_limit",
]
