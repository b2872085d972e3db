"""Batches made side by side: processes that tokenize, each with the dataset and a tokenizer of its own.

A process gets a batch's number and gives back its bytes; the texts never pass between processes. They are forked from a
server that has imported what they need and done nothing else: after a fork of the producer the Rust tokenizer's and
Arrow's threads would be missing, and started anew, eight took 8.3 s for their imports on two cores, instead of 1.2 s.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import NamedTuple

import pyarrow as pa

from contract.errors import UserError
from contract.job import Job
from contract.settings import settings
from producer.batches import RowTokenizer, batch_of
from producer.texts import TextDataset

_PAYS_FROM = 8
"""Batches for each process from which on it is worth its start and the words that it has to meet."""


_MANY = 1_000_000
"""Batches, while their number is not known."""


class Work(NamedTuple):
    """What a tokenizing process is told at its start."""

    job: Job
    texts: TextDataset
    """Pickled it names its memory-mapped files: no text is copied."""
    tokenizer: RowTokenizer

    def payload(self, batch: int) -> bytes:
        """A batch's bytes; always the same.

        Raises:
            UserError: its rows cannot be read or tokenized.
        """
        rows = self.job.row_range(batch)
        try:
            texts, kept = self.texts.read(rows)
            return batch_of(self.job, batch, texts, self.tokenizer, kept, self.texts.features).to_bytes()
        except (ValueError, TypeError, OSError, OverflowError) as error:  # what Arrow, tokenizers and a lost file raise
            raise UserError(
                f"rows {rows.start} to {rows.stop - 1} of {self.job.dataset} cannot be tokenized ({error})",
                mend="mend them, or leave them out with --limit",
            ) from None


class BatchSource(NamedTuple):
    """How batches are made."""

    begin: Callable[[int], "Future[bytes]"]
    """Has a batch made. Its result is the batch's bytes, or raises what was wrong with a row."""
    ahead: int
    """Most batches that are being made, or made and not yet taken: what bounds the memory."""


def processes_for(batches: int) -> int:
    """How many processes tokenize a job with this many batches to make; 1 is the producer itself."""
    if settings().tokenizers:
        return max(1, min(settings().tokenizers or 1, batches))
    # The other half is the workers' and Redis's. Where two are one core's threads, they would add next to nothing.
    return max(1, min(len(os.sched_getaffinity(0)) // 2, batches // _PAYS_FROM))


def get_ready() -> None:
    """Start the server that tokenizing processes are forked from, if there may be any: its imports take as long as
    opening a dataset, and go on beside it."""
    if processes_for(_MANY) > 1:
        _context()
        resource_tracker.ensure_running()  # by itself: on Python 3.11 its start unblocks the signal again
        with _uninterrupted():
            forkserver.ensure_running()


@contextlib.contextmanager
def tokenizing(work: Work, processes: int) -> Iterator[BatchSource]:
    """What makes a job's batches, gone when the ``with`` block ends.

    Args:
        work: what to work on.
        processes: how many; 1 for this process itself, with the Rust tokenizer's own threads.

    Raises:
        UserError: a process died.
    """
    if processes > 1:
        with tokenizing_apart(work, processes) as source:
            yield source
    else:
        yield BatchSource(functools.partial(_made_here, work), ahead=1)


@contextlib.contextmanager
def tokenizing_apart(work: Work, processes: int) -> Iterator[BatchSource]:
    """Processes that make a job's batches, each on one core, gone when the ``with`` block ends, however it ends.

    Raises:
        UserError: a process died.
    """
    pool = ProcessPoolExecutor(processes, _context(), _start, work)
    watched, end = multiprocessing.Pipe()
    watch = threading.Thread(target=_watch, args=(pool, watched), daemon=True)
    watch.start()
    try:
        # Twice as many as there are processes: while one batch waits to be published its process makes the next.
        yield BatchSource(functools.partial(_begun, pool), ahead=2 * processes)
    except BrokenProcessPool:
        raise UserError(
            "a tokenizing process died",
            "most often the machine is out of memory",
            "run the same command again: the job goes on where it was; EMBEDMILL_TOKENIZERS=2 starts only two",
        ) from None
    finally:
        end.close()
        watch.join()
        _end(pool)  # a batch that nobody waits for any more would be finished first
        pool.shutdown(cancel_futures=True)


def _watch(pool: ProcessPoolExecutor, until: Connection) -> None:
    """End all processes when one has died: the executor does so too, but not while it waits for the rest of a batch
    that one died in the middle of."""
    while True:
        there = [process.sentinel for process in list(pool._processes.values())]  # they are started one by one
        if ready := wait([until, *there], timeout=1):
            if until not in ready:
                _end(pool)
            return


def _end(pool: ProcessPoolExecutor) -> None:
    for process in list(pool._processes.values()):
        process.terminate()
    # This process's end of the pipe that they answer through: while it is open, the rest of a batch that one of them
    # was ended in the middle of would be waited for, for ever.
    pool._result_queue._writer.close()  # type: ignore[attr-defined]


def _made_here(work: Work, batch: int) -> "Future[bytes]":
    made: Future[bytes] = Future()
    made.set_result(work.payload(batch))
    return made


def _begun(pool: ProcessPoolExecutor, batch: int) -> "Future[bytes]":
    with _uninterrupted():  # this may start a process
        return pool.submit(_payload, batch)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process that is started in the ``with`` block inherits the mask: Ctrl-C, which a terminal sends to all, is the
    producer's to handle. Here it comes after the block, since a process that is half started is in nobody's list of
    those to end; and the mask alone does not keep it off, as other threads take the signal too."""
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


# What follows runs in the tokenizing processes.

_work: Work | None = None


def _start(*work: object) -> None:
    global _work
    _work = Work(*work)  # type: ignore[arg-type]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core is what this process is for
    pa.set_cpu_count(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Also after a SIGKILL of the producer, which nothing else would tell this process of."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _payload(batch: int) -> bytes:
    if _work is None:
        raise RuntimeError("this process was not told what to work on")
    return _work.payload(batch)
