import os
import signal
import threading

import pytest

from grasp_lora.errors import Interrupted
from grasp_lora.runs import graceful_interrupt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_one_stops(number):
    before = signal.getsignal(number)
    calls = []

    def loop():
        with graceful_interrupt(lambda: calls.append(1)) as flag:
            assert not flag.requested
            flag.check("resume")
            signal.raise_signal(number)
            assert flag.requested
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert calls == [1]
    assert signal.getsignal(number) is before


def test_handlers_are_back_after_any_ending():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with graceful_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    with pytest.raises(ValueError, match="x"), graceful_interrupt():
        raise ValueError("x")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_check_raises_with_the_way_to_resume():
    with graceful_interrupt() as flag:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match=r"everything done so far is kept\. Resume with: x") as caught:
            flag.check("Resume with: x")
    assert caught.value.exit_code == 130


def test_an_inner_block_shares_the_outer_flag():
    with graceful_interrupt() as outer:
        with graceful_interrupt() as inner:
            signal.raise_signal(signal.SIGINT)
            assert inner is outer
        assert outer.requested
        assert signal.getsignal(signal.SIGINT) == outer.handle


def test_in_another_thread_nothing_is_touched():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with graceful_interrupt() as flag:
            seen.append((flag.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
