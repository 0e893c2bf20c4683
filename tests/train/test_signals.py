"""Test stop signals."""

import os
import signal

from scratch_gpt.train.signals import StopSignals


def test_a_second_interrupt_is_not_delayed():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
