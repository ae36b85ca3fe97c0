import os
import signal

import pytest

from lib import stop
from lib.stop import Stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_flag_and_a_second_one_is_heeded_at_once(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_with_grace_a_second_signal_ends_it():
    with Stop(60) as asked:
        assert asked.deadline == float("inf")
        os.kill(os.getpid(), signal.SIGTERM)
        assert 0 < asked.deadline < float("inf")
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.deadline == 0


def test_what_comes_first_is_the_reason(capsys):
    asked = Stop(1)
    asked.because("a full disk")
    asked.because("SIGINT")
    assert asked.reason == "a full disk" and asked.signal == 0
    assert capsys.readouterr().out == "stopping: a full disk\n"


def test_a_signal_that_comes_while_we_print_is_heard(monkeypatch):
    def reentrant(text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    monkeypatch.setattr(stop, "say", reentrant)
    with Stop() as asked:
        os.kill(os.getpid(), signal.SIGINT)
    assert asked.reason == "SIGINT"
