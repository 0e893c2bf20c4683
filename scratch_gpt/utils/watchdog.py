"""End a run that makes no progress: write the stacks of its threads to a file and one line to stderr.

Progress is a call of `beat`: a step, a batch of an evaluation, a part of a file, an answer, a save. Time in which the
process is suspended, or the machine sleeps, does not count. A thread checks for progress. Code that never releases
Python's global lock stops that thread too, so a second process waits for its signals (not on Windows).
"""

import faulthandler
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


TICK = 1.0  # seconds between two checks; a longer interval counts as at most twice this
_beats = 0


def beat() -> None:
    """Report progress."""
    global _beats
    _beats += 1


@contextmanager
def watch(
    seconds: float, file: Path, say_more: Callable[[], str], end: Callable[[int], None] = os._exit
) -> Iterator[None]:
    """End the process with a message if `beat` is not called for `seconds`; 0 turns this off.

    The exit code is 2, or that of a killed process if code holds Python's global lock.

    Args:
        file: the stacks of all threads are written to it.
        say_more: returns the end of the message.
    """
    if not seconds:
        yield
        return
    ended = threading.Event()
    guard = _Guard(seconds, file, say_more) if hasattr(faulthandler, "register") else None

    def look() -> None:
        last_beats, idle, last_look = _beats, 0.0, time.monotonic()
        tick = min(TICK, seconds / 4)
        while not ended.wait(tick):
            now = time.monotonic()
            idle, last_look = idle + min(now - last_look, 2 * tick), now
            if guard is not None:
                guard.sign(last_beats != _beats)
            if last_beats != _beats:
                last_beats, idle = _beats, 0.0
            elif idle >= seconds:
                # The disk itself may hang, so a separate thread writes, and the end waits at most 30 seconds for it.
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
        if guard is not None:
            guard.close()


def _report(seconds: float, file: Path, say_more: Callable[[], str]) -> None:
    def write() -> None:
        with file.open("w", encoding="utf-8") as stacks:
            faulthandler.dump_traceback(stacks, all_threads=True)

    _print_error(seconds, _save_stacks(file, write), say_more())
    sys.stdout.flush()


def _save_stacks(file: Path, write: Callable[[], object]) -> str:
    # Write the file; return a sentence for the message.
    try:
        write()
    except OSError as error:
        return f"{file} could not be written ({error.strerror})."
    return f"{file} has the stacks of all threads."


def _print_error(seconds: float, where: str, advice: str) -> None:
    duration = f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"
    print(f"\nerror: no progress for {duration}. {where} {advice}", file=sys.stderr, flush=True)


# --- A second process, for code that holds the global lock -----------------------------------------------------------


class _Guard:
    """A second process that ends this one if it receives no signal from it for `seconds`."""

    def __init__(self, seconds: float, file: Path, say_more: Callable[[], str]):
        self.say_more, self.sender = say_more, threading.Thread()
        self.stacks = tempfile.TemporaryFile()
        faulthandler.register(signal.SIGUSR2, self.stacks, all_threads=True)  # this handler does not need the lock
        numbers = (os.getpid(), seconds, self.stacks.fileno())
        command = [sys.executable, "-I", __file__, *map(str, numbers), str(file)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[self.stacks.fileno()],
            start_new_session=True,  # Ctrl-C and Ctrl-Z are for the run
        )
        assert self.process.stdin is not None  # a pipe
        self.pipe = self.process.stdin
        os.set_blocking(self.pipe.fileno(), False)
        self._send_advice()

    def sign(self, has_progress: bool) -> None:
        """Signal that this process runs; after progress, a separate thread sends the new end of the message."""
        self._write("")
        if has_progress and not self.sender.is_alive():
            self.sender = threading.Thread(target=self._send_advice, daemon=True)
            self.sender.start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        faulthandler.unregister(signal.SIGUSR2)
        self.stacks.close()

    def _send_advice(self) -> None:
        self._write(self.say_more())

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the second process has ended, or does not read
            os.write(self.pipe.fileno(), " ".join(text.split()).encode("utf-8", "replace") + b"\n")


def _guard_process(parent: int, seconds: float, stacks: int, file: Path) -> None:
    """Read a line per tick from standard input, empty or the end of the message; if none comes, end the parent."""
    import psutil

    tick, idle, last_look, advice, incomplete = min(TICK, seconds / 4), 0.0, time.monotonic(), "", b""
    process = psutil.Process(parent)
    while os.getppid() == parent:
        is_ready = bool(select.select([0], [], [], tick)[0])
        now = time.monotonic()
        idle, last_look = idle + min(now - last_look, 2 * tick), now
        if is_ready:
            chunk = os.read(0, 2**16)
            if not chunk:
                return
            *lines, incomplete = (incomplete + chunk).split(b"\n")
            advice, idle = next((line.decode() for line in reversed(lines) if line), advice), 0.0
        elif process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            idle = 0.0
        elif idle >= seconds:
            os.kill(parent, signal.SIGUSR2)
            time.sleep(min(1.0, seconds))
            where = _save_stacks(file, lambda: file.write_bytes(os.pread(stacks, 2**24, 0)))
            _print_error(seconds, where, advice)
            os.kill(parent, signal.SIGKILL)
            return


if __name__ == "__main__":
    _guard_process(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))


__all__ = ["beat", "watch"]
