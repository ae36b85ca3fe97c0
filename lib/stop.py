"""Ctrl-C and SIGTERM as a flag: work ends between two of its steps, not in the middle of its bookkeeping."""

import contextlib
import signal
import threading
import time

from lib.words import say


class Stop:
    """Why to stop, while it is entered; with some seconds of grace, also until when what is under way may go on.

    Asked twice, there is no more grace; who has none to give is interrupted at once.
    """

    def __init__(self, grace: float = 0.0):
        self.grace, self.reason, self.signal, self.deadline = grace, "", 0, float("inf")

    def because(self, reason: str) -> None:
        if not self.reason:
            self.reason, self.deadline = reason, time.monotonic() + self.grace
            with contextlib.suppress(RuntimeError):  # the signal came while we were printing
                say(f"stopping: {reason}")

    def hear(self, number: int, _frame) -> None:
        self.signal = number
        if self.reason and not self.grace:
            raise KeyboardInterrupt
        if self.reason:
            self.deadline = 0.0
        self.because(signal.Signals(number).name)

    def __enter__(self) -> "Stop":
        heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self.before = {number: signal.signal(number, self.hear) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
