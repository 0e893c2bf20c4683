"""End a run after the current step when the system asks it to stop."""

import signal
import threading
from typing import Any


class StopSignals:
    """A context manager that records the first SIGTERM or SIGINT in `received` instead of ending the process.

    A second SIGINT ends the process at once. Outside the main thread signals are handled as usual.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # even in the middle of a long operation


__all__ = ["StopSignals"]
