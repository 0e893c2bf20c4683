"""One writer per output folder: a lock file names its owner, who touches it as long as it lives."""

import atexit
import json
import os
import platform
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from .foreign import read_foreign_text


LOCK = ".scratch_gpt.lock"
BEAT, STALE = 10, 120  # seconds: between two signs of life, and after which there will be none
_held: dict[Path, "Lock"] = {}  # by this process


class Lock:
    """`with hold(folder):` - nobody else writes into the folder meanwhile. See `hold`."""

    def __init__(self, folder: Path):
        self.file, self.count, self.lost = folder / LOCK, 0, False
        self.made = [path for path in (folder, *folder.parents) if not path.exists()]
        me = psutil.Process()
        self.owner = {"host": platform.node(), "space": _space(), "pid": me.pid, "started": me.create_time()}
        self.owner |= {"since": time.strftime("%Y-%m-%d %H:%M"), "token": uuid.uuid4().hex}
        self.ended = threading.Event()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def take(self, say: Callable[[str], None]) -> None:
        """Make the file, or raise a ValueError where another process has one."""
        folder = self.file.parent
        folder.mkdir(parents=True, exist_ok=True)
        while not self._make():
            current_owner = _read(self.file)
            if current_owner is None:  # gone meanwhile
                continue
            if problem := _is_alive(self.file, current_owner):
                raise ValueError(
                    f"{folder} is in use: {problem}. Wait for its end, give another folder, or remove {self.file} if "
                    "no process writes into it."
                )
            if _take_away(self.file, current_owner):
                say(f"{folder}: the last process that wrote into it has ended without a word; this one takes over.")
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        atexit.register(self.release)

    def _make(self) -> bool:
        try:
            handle = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with open(handle, "wb") as file:
                file.write(json.dumps(self.owner).encode())
        except OSError:
            self.file.unlink()
            raise
        return True

    def _beat(self) -> None:
        while not self.ended.wait(BEAT):
            with suppress(OSError):
                current_owner = _read(self.file)
                self.lost = current_owner is not None and current_owner != self.owner
                if current_owner == self.owner:
                    os.utime(self.file)

    def release(self) -> None:
        """Give the folder free when everything that holds it has done so; folders made for it go if they are empty."""
        self.count -= 1
        if self.count > 0 or self.ended.is_set() or os.getpid() != self.owner["pid"]:
            return
        self.ended.set()
        atexit.unregister(self.release)
        _held.pop(self.file.parent, None)
        with suppress(OSError):
            if _read(self.file) == self.owner:
                self.file.unlink()
            for path in self.made:
                path.rmdir()


def hold(folder: str | Path, say: Callable[[str], None] = print) -> Lock:
    """Hold a folder, which is made where it is not there, until `release` or the end of `with`.

    This process may hold it several times. A lock of a process of this machine that has ended is taken over, which is
    said; one of another machine where its file has not been touched for two minutes.

    Raises:
        ValueError: another process holds it, or nothing can be written there.
    """
    place = Path(folder).resolve()
    lock = _held.get(place)
    if lock is None:
        lock = Lock(place)
        try:
            lock.take(say)
        except OSError as error:
            raise ValueError(f"{folder} cannot be written to ({error.strerror or error}). Give another.") from error
        _held[place] = lock
    lock.count += 1
    return lock


def check_held(folder: str | Path) -> None:
    """Raise an OSError where this process has held a folder and another one has taken it over."""
    lock = _held.get(Path(folder).resolve())
    if lock is not None and lock.lost:
        raise OSError(f"{folder} has been taken over by another process")


def _space() -> str:
    # Where process numbers count: containers may share a host's name, and not its processes.
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _read(file: Path) -> dict[str, Any] | None:
    # None where there is no file, nothing in it where nobody can read it (or its owner is about to write it)
    if not os.path.lexists(file):
        return None
    try:
        content = json.loads(read_foreign_text(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(file: Path, owner: dict[str, Any]) -> str:
    # Who owns the lock and may still write, in a few words; empty where nobody does
    description = (
        f"process {owner.get('pid', '?')} on {owner.get('host', 'a machine')} since {owner.get('since', '?')}"
    )
    if (owner.get("host"), owner.get("space")) == (platform.node(), _space()):
        try:
            process = psutil.Process(owner["pid"])
            is_same = abs(process.create_time() - owner["started"]) < 2
            return description if is_same and process.status() != psutil.STATUS_ZOMBIE else ""
        except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
            return ""
        except psutil.AccessDenied:
            return description
    try:  # by the clock of the disk, which is the same for all machines
        with tempfile.TemporaryFile(dir=file.parent) as now:
            age = os.fstat(now.fileno()).st_mtime - file.stat().st_mtime
    except FileNotFoundError:
        return ""
    return f"{description}, whose last sign of life is {max(0, age):.0f} s old" if age < STALE else ""


def _take_away(file: Path, owner: dict[str, Any]) -> bool:
    # Remove a lock whose owner has ended, and no other: another process may have been faster.
    aside = file.with_name(f"{LOCK}-{uuid.uuid4().hex}")
    try:
        os.replace(file, aside)
    except FileNotFoundError:
        return False
    is_that = _read(aside) == owner
    if not is_that:
        with suppress(OSError):
            os.link(aside, file)
    aside.unlink()
    return is_that


__all__ = ["LOCK", "Lock", "check_held", "hold"]
