"""How a run hears that it is to stop; what guards do to their workers is tests/test_pool.py's."""

import os
import signal
import sys
import time
from pathlib import Path

from lib import guards

sys.path.append(str(Path(__file__).parent))
from test_pool import until


def test_a_signal_that_comes_while_we_print_is_heard(monkeypatch):
    def reentrant(text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    monkeypatch.setattr(guards, "say", reentrant)
    with guards.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: stop.reason)
    assert stop.reason == "SIGINT"


def test_asked_twice_there_is_no_grace():
    with guards.Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: stop.reason)
        assert stop.reason == "SIGTERM" and time.monotonic() < stop.deadline <= time.monotonic() + guards.GRACE
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: stop.deadline == 0)
    assert signal.getsignal(signal.SIGTERM) is not stop.hear
