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
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from queue import Empty, SimpleQueue
from typing import NamedTuple

import pyarrow as pa

from contract.errors import UserError
from contract.job import Job
from contract.settings import settings
from producer.batches import RowTokenizer, batch_of, readable
from producer.texts import TextDataset

_PAYS_FROM = 8
"""Batches for each process from which on it is worth its start and the words that it has to meet."""

_SENT = 2
"""Batches whose numbers a process has: the one that it makes, and the next."""

_MANY = 1_000_000
"""Batches, while their number is not known."""


class Work(NamedTuple):
    """What a tokenizing process works on."""

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
        with readable(self.job.dataset, rows):
            texts, kept = self.texts.read(rows)
            return batch_of(self.job, batch, texts, self.tokenizer, kept, self.texts.features).to_bytes()


class BatchSource(NamedTuple):
    """How batches are made."""

    begin: Callable[[int], "Future[bytes]"]
    """Has a batch made. Its result is the batch's bytes, or a ``UserError``: a row is wrong, the process died."""
    ahead: int
    """Most batches that are being made, or made and not yet taken: what bounds the memory."""


class Task(NamedTuple):
    """A batch to make."""

    batch: int
    made: "Future[bytes]"


class Tasks:
    """The batches that no process has yet."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self.idle = 0
        """Threads whose process has nothing to do."""
        self._lock = threading.Lock()

    def add(self, batch: int) -> "Future[bytes]":
        made: Future[bytes] = Future()
        self._queue.put(Task(batch, made))
        return made

    def end(self, threads: int) -> None:
        """Have this many threads end."""
        for _ in range(threads):
            self._queue.put(None)

    def first(self) -> Task | None:
        """A batch for a process that has none; waits for it. None: there are no more."""
        with self._lock:
            self.idle += 1
        task = self._queue.get()
        with self._lock:
            self.idle -= 1
        return task

    def another(self) -> Task | None:
        """A batch for a process that has one.

        Raises:
            Empty: there is none, or a process that has nothing to do waits for it.
        """
        if self.idle:
            raise Empty
        return self._queue.get_nowait()


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
        _start_server()


def _start_server() -> ForkServerContext:
    context = _context()
    resource_tracker.ensure_running()  # by itself: on Python 3.11 its start unblocks the signal again
    with without_interrupts():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def tokenizing(work: Work, processes: int) -> Iterator[BatchSource]:
    """What makes a job's batches, gone when the ``with`` block ends.

    Args:
        work: what to work on.
        processes: how many; 1 for this process itself, with the Rust tokenizer's own threads.
    """
    if processes > 1:
        with tokenizing_apart(work, processes) as source:
            yield source
    else:
        yield BatchSource(functools.partial(_made_here, work), ahead=1)


@contextlib.contextmanager
def tokenizing_apart(work: Work, processes: int) -> Iterator[BatchSource]:
    """Processes that make a job's batches, each on one core, gone when the ``with`` block ends, however it ends.

    Each has a connection of its own, and a thread here that waits at it: when a process dies, even in the middle of a
    batch, its connection ends, and the batch's future raises a ``UserError``.
    """
    context = _start_server()
    children: list[tuple[ForkServerProcess, Connection]] = []
    threads: list[threading.Thread] = []
    tasks = Tasks()

    try:
        while len(children) < processes:
            with without_interrupts():
                children.append(_started(context, work))
        for process, connection in children:
            thread = threading.Thread(target=_feed, args=(process, connection, tasks), daemon=True)
            thread.start()
            threads.append(thread)
        # Twice as many as there are processes: while one batch waits to be published its process makes the next.
        yield BatchSource(tasks.add, ahead=2 * processes)
    finally:
        for process, _ in children:
            process.terminate()  # a batch that nobody waits for any more would be finished first
        for process, _ in children:
            process.join()
        tasks.end(len(threads))
        for thread in threads:
            thread.join()
        for _, connection in children:
            connection.close()


def _started(context: ForkServerContext, work: Work) -> tuple[ForkServerProcess, Connection]:
    """A tokenizing process, and this process's end of the connection to it."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()  # the process alone has it now, so that the connection ends when the process does
    return process, ours


def _feed(process: ForkServerProcess, connection: Connection, tasks: Tasks) -> None:
    """Give a process batches to make, until there are no more. It has the next number before it has answered the last
    one, and so never waits for this thread."""
    sent: deque[Future[bytes]] = deque()
    while True:
        while len(sent) < _SENT:
            try:
                task = tasks.another() if sent else tasks.first()
            except Empty:
                break
            if task is None:
                for made in sent:
                    made.cancel()
                return
            sent.append(task.made)
            with contextlib.suppress(OSError):  # the process is gone, and does not answer below
                connection.send(task.batch)
        _take_answer(process, connection, sent.popleft())


def _take_answer(process: ForkServerProcess, connection: Connection, made: "Future[bytes]") -> None:
    try:
        if payload := connection.recv_bytes():
            made.set_result(payload)
        else:
            made.set_exception(connection.recv())
    except (EOFError, OSError):
        process.join(1)
        made.set_exception(_died(process.exitcode))
    except Exception as error:  # an answer that cannot be read: whoever waits must hear of it
        made.set_exception(error)


def _died(status: int | None) -> UserError:
    again = "run the same command again: the job goes on where it was"
    if status == -signal.SIGKILL:
        hint = f"{again}; EMBEDMILL_TOKENIZERS=2 starts only two"
        return UserError("a tokenizing process was killed", "most often the machine is out of memory", hint)
    return UserError(f"a tokenizing process died (exit status {status})", "its own lines say why", again)


def _made_here(work: Work, batch: int) -> "Future[bytes]":
    made: Future[bytes] = Future()
    made.set_result(work.payload(batch))
    return made


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
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


# What follows runs in the tokenizing processes.


def _serve(connection: Connection, work: Work) -> None:
    """Answer each batch's number with its bytes, or with no bytes and then a ``UserError``."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core is what this process is for
    pa.set_cpu_count(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):  # the producer is gone
        while True:
            batch = connection.recv()
            try:
                payload = work.payload(batch)
            except BaseException as error:  # a panic of the Rust tokenizer is no Exception
                connection.send_bytes(b"")
                connection.send(_as_user_error(work, batch, error))
            else:
                connection.send_bytes(payload)


def _as_user_error(work: Work, batch: int, error: BaseException) -> UserError:
    """What the producer shows: any other exception might not survive the way there."""
    if isinstance(error, UserError):
        return error
    rows = work.job.row_range(batch)
    found = f"rows {rows.start} to {rows.stop - 1} of {work.job.dataset} cannot be tokenized"
    shown = UserError(f"{found} ({type(error).__name__}: {error})", hint="report this, with the lines above")
    traceback.print_exc()
    return shown


def _end_with_parent() -> None:
    """Also after a SIGKILL of the producer, and in the middle of a batch."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
