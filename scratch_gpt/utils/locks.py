"""Allow one writer per output folder: a lock file names its owner, which touches the file while it runs."""

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
BEAT, STALE = 10, 120  # seconds between two touches of the file, and the age at which a lock is stale
_held: dict[Path, "Lock"] = {}  # by this process


class Lock:
    """The lock of a folder, released at the end of `with`; make it with `hold`."""

    def __init__(self, folder: Path):
        self.file, self.count, self.lost = folder / LOCK, 0, False
        self.made = [path for path in (folder, *folder.parents) if not path.exists()]
        process = psutil.Process()
        self.owner = {"host": platform.node(), "space": _space(), "pid": process.pid, "started": process.create_time()}
        self.owner |= {"since": time.strftime("%Y-%m-%d %H:%M"), "token": uuid.uuid4().hex}
        self.ended = threading.Event()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def take(self, say: Callable[[str], None]) -> None:
        """Make the file; raise a ValueError if another process holds it."""
        folder = self.file.parent
        folder.mkdir(parents=True, exist_ok=True)
        while not self._make():
            current_owner = _read(self.file)
            if current_owner is None:  # removed since
                continue
            if problem := _is_alive(self.file, current_owner):
                raise ValueError(
                    f"{folder} is in use: {problem}. Wait until it ends, give another folder, or remove {self.file} "
                    "if no process writes into the folder."
                )
            if _take_away(self.file, current_owner):
                say(f"{folder}: the last process that used it ended without releasing it; this process takes over.")
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
        """Release the folder once for each `hold`; the last one removes the file, and folders made for it if empty."""
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
    """Hold a folder until `release` or the end of `with`; make the folder if it is missing.

    This process may hold it several times. The lock of a process that has ended on this machine is taken over, with a
    message. The lock of another machine is taken over if its file has not been touched for two minutes.

    Raises:
        ValueError: another process holds it, or it cannot be written to.
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
    """Raise an OSError if this process held the folder and another process has taken it over."""
    lock = _held.get(Path(folder).resolve())
    if lock is not None and lock.lost:
        raise OSError(f"{folder} has been taken over by another process")


def _space() -> str:
    # The namespace of process numbers: containers may share a host's name, but not its processes.
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _read(file: Path) -> dict[str, Any] | None:
    # None if the file is missing; {} if it cannot be read, or its owner has not written it yet.
    if not os.path.lexists(file):
        return None
    try:
        content = json.loads(read_foreign_text(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(file: Path, owner: dict[str, Any]) -> str:
    # Describe the owner of the lock if it may still write; otherwise return an empty string.
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
    try:  # use the clock of the disk, which is the same for all machines
        with tempfile.TemporaryFile(dir=file.parent) as now:
            age = os.fstat(now.fileno()).st_mtime - file.stat().st_mtime
    except FileNotFoundError:
        return ""
    return f"{description}, last active {max(0, age):.0f} s ago" if age < STALE else ""


def _take_away(file: Path, owner: dict[str, Any]) -> bool:
    # Remove the lock of an owner that has ended. Another process may have replaced it since; then put it back.
    aside = file.with_name(f"{LOCK}-{uuid.uuid4().hex}")
    try:
        os.replace(file, aside)
    except FileNotFoundError:
        return False
    is_same = _read(aside) == owner
    if not is_same:
        with suppress(OSError):
            os.link(aside, file)
    aside.unlink()
    return is_same


__all__ = ["LOCK", "Lock", "check_held", "hold"]
