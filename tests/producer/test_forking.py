"""The server that tokenizing processes are forked from."""

import os
import signal
import threading
import time

import pytest

from producer.forking import without_interrupts


def test_ctrl_c_comes_when_a_process_is_started_and_not_before() -> None:
    """Also where another thread takes the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    reached = []

    def start() -> None:
        with without_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            reached.append("started")

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        end.set()
        other.join()
        signal.signal(signal.SIGINT, before)
    assert reached == ["started"]
