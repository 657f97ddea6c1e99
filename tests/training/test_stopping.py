import os
import signal
import threading
import time

import pytest

from piat_jax.training.stopping import Interrupted, StopSignals


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request_and_the_second_has_its_usual_effect(number, capfd):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals() as stopping:
        assert not stopping.requested()
        send(number)
        assert stopping.requested()
        assert "the same signal again stops at once" in capfd.readouterr().err
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == [signal.SIG_DFL] * 2
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_what_is_interruptible_is_left_at_once_and_nothing_else():
    reached = []
    with StopSignals() as stopping:
        assert stopping.interruptible(lambda a, b: a + b)(1, 2) == 3
        with pytest.raises(Interrupted):
            stopping.interruptible(lambda: (send(), time.sleep(60)))()
        # A request that came before is answered by not beginning.
        with pytest.raises(Interrupted):
            stopping.interruptible(lambda: reached.append(1))()
    with StopSignals() as stopping:
        send()
        reached.append(2)
    assert reached == [2]


def test_other_threads_are_no_obstacle():
    with StopSignals() as outer:
        thread = threading.Thread(target=lambda: StopSignals().__enter__())
        thread.start()
        thread.join()
        send()
        assert outer.requested()
