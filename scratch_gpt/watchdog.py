"""A run that makes no progress any more -> its stacks in a file, one line, and the end of the process.

Progress is a call of `beat`: a step, a batch of an evaluation, rows, an answer, a save. A process that is itself
suspended, and a machine that sleeps, lose no time. Code that never gives Python's own lock back is not noticed.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


TICK = 1.0  # seconds; no more than twice this counts between two looks
_beats = 0


def beat() -> None:
    """Say that there is progress."""
    global _beats
    _beats += 1


@contextmanager
def watch(
    seconds: float, file: Path, say_more: Callable[[], str], end: Callable[[int], None] = os._exit
) -> Iterator[None]:
    """End the process, with code 2 and one line, where nothing calls `beat` for so many seconds; 0 never does.

    Args:
        file: takes the stacks of all threads.
        say_more: what the line ends with.
    """
    if not seconds:
        yield
        return
    ended = threading.Event()

    def look() -> None:
        seen, idle, before = _beats, 0.0, time.monotonic()
        tick = min(TICK, seconds / 4)
        while not ended.wait(tick):
            now = time.monotonic()
            idle, before = idle + min(now - before, 2 * tick), now
            if seen != _beats:
                seen, idle = _beats, 0.0
            elif idle >= seconds:
                # What hangs may be the disk: a thread of its own writes, and the end waits for it only so long.
                report = threading.Thread(target=_report, args=(seconds, file, say_more), daemon=True)
                report.start()
                report.join(30)
                end(2)
                return

    beat()
    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * TICK)


def _report(seconds: float, file: Path, say_more: Callable[[], str]) -> None:
    try:
        with file.open("w", encoding="utf-8") as stacks:
            faulthandler.dump_traceback(stacks, all_threads=True)
        where = f"{file} has the stacks of all threads."
    except OSError as error:
        where = f"{file} could not be written ({error.strerror})."
    for_long = f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"
    print(f"\nerror: no progress for {for_long}. {where} {say_more()}", file=sys.stderr, flush=True)
    sys.stdout.flush()


__all__ = ["beat", "watch"]
