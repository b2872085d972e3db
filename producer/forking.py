"""The server that tokenizing processes are forked from.

It has imported what they need and done nothing else: after a fork of the producer the Rust tokenizer's and Arrow's
threads would be missing, and started anew, eight took 8.3 s for their imports on two cores, instead of 1.2 s.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext


def start_server() -> ForkServerContext:
    """The server, which is started unless it runs; it imports while this process goes on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["producer.making"])
    resource_tracker.ensure_running()  # by itself: on Python 3.11 its start unblocks the signal again
    with without_interrupts():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """A process that is started in the ``with`` block inherits the mask: Ctrl-C, which a terminal sends to all, is the
    producer's to handle. Here it comes after the block: in the middle of a start, the new process would not yet be in
    the list of those to end. The mask alone does not keep it off, as other threads take the signal too."""
    came: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main = threading.current_thread() is threading.main_thread()  # in which alone handlers can be set, and run
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number)) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if came:
        signal.raise_signal(signal.SIGINT)
