"""Batches made side by side: processes that tokenize, each with the dataset and a tokenizer of its own.

The producer hands out numbers, says when a batch's bytes may go into Redis, and learns when they are there: see
``producer.making``.
"""

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, NamedTuple, TypeVar

from contract.errors import UserError
from contract.settings import settings
from producer.batches import Work
from producer.forking import start_server, without_interrupts
from producer.making import Answer, Maker, Order, serve

_PAYS_FROM = 8
"""Batches for each process from which on it is worth its start and the words that it has to meet."""

_MANY = 1_000_000
"""Batches, while their number is not known."""

_Result = TypeVar("_Result")


class Made(NamedTuple):
    """A batch that is made and not in Redis: whoever made it has its bytes."""

    size: int
    """Bytes."""
    put: Callable[[str], "Future[bool]"]
    """Has the bytes put into Redis, for the producer of this id. Its result is whether the batch was published, because
    that producer has still claimed it; or a ``RedisError``, after which it may be called again, or a ``UserError``."""


class BatchSource(NamedTuple):
    """How batches are made."""

    make: Callable[[int], "Future[Made]"]
    """Has a batch made. Its result may be a ``UserError``: a row is wrong, the process died."""
    ahead: int
    """Most batches that are being made, or made and not yet in Redis: what bounds the memory."""

    @property
    def claims_at_once(self) -> int:
        """How many batches a producer claims at once: half of those that are made at once. Fewer would cost more
        questions to Redis, and more would be kept from the other producers for a while if this one died."""
        return max(1, self.ahead // 2)


def processes_for(batches: int, producers: int = 1, here: int = 1) -> int:
    """How many processes tokenize for a producer; 1 is the producer itself.

    Args:
        batches: of the job, which are to be made.
        producers: that share them.
        here: those of them on this machine, who share its cores.
    """
    share = -(-batches // producers)
    if settings().tokenizers:
        return max(1, min(settings().tokenizers or 1, share))
    # The other half is the workers' and Redis's. Where two are one core's threads, they would add next to nothing.
    return max(1, min(len(os.sched_getaffinity(0)) // 2 // here, share // _PAYS_FROM))


def get_ready() -> None:
    """Start the server that tokenizing processes are forked from, if there may be any: its imports take as long as
    opening a dataset, and go on beside it."""
    if processes_for(_MANY) > 1:
        start_server()


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
        yield tokenizing_here(work)


def tokenizing_here(work: Work) -> BatchSource:
    """This process makes the batches, each while it is asked for."""
    maker = Maker(work)

    def make(batch: int) -> "Future[Made]":
        return _done(lambda: Made(maker.make(batch), lambda producer: _done(lambda: maker.put(batch, producer))))

    return BatchSource(make, ahead=1)


def _done(call: Callable[[], _Result]) -> "Future[_Result]":
    future: Future[_Result] = Future()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    return future


@contextlib.contextmanager
def tokenizing_apart(work: Work, processes: int) -> Iterator[BatchSource]:
    """Processes that make a job's batches, each on one core, gone when the ``with`` block ends, however it ends."""
    context = start_server()
    children: list[Child] = []

    def make(batch: int) -> "Future[Made]":
        return min(children, key=lambda child: child.makes).make(batch)

    try:
        while len(children) < processes:
            with without_interrupts():
                children.append(Child(context, work))
        for child in children:
            child.listen()
        # Twice as many as there are processes: each has its next number before it has made the last one, and so never
        # waits for this process.
        yield BatchSource(make, ahead=2 * processes)
    finally:
        for child in children:
            child.process.terminate()  # a batch that nobody waits for any more would be finished first
        for child in children:
            child.end()


class Child:
    """A tokenizing process, as the producer sees it.

    It has a connection of its own, and a thread here that waits at it: when the process dies, even in the middle of an
    answer, the connection ends, and with a ``UserError`` whatever was asked or will be.
    """

    def __init__(self, context: ForkServerContext, work: Work) -> None:
        self._connection, theirs = context.Pipe()
        self.process: ForkServerProcess = context.Process(
            target=serve, args=(theirs, work, dict(os.environ)), daemon=True
        )
        self.process.start()
        theirs.close()  # the process alone has it now, so that the connection ends when the process does
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._lock = threading.Lock()
        self._asked: dict[bool, deque[tuple[Future[Any], Callable[[int], Any]]]] = {False: deque(), True: deque()}
        """By ``Order.put``, in the orders' order: who waits for an answer, and what they get for its number."""
        self._died: UserError | None = None

    @property
    def makes(self) -> int:
        """How many batches it has to make."""
        return len(self._asked[False])

    def make(self, batch: int) -> "Future[Made]":
        return self._ask(
            Order(batch), lambda size: Made(size, lambda producer: self._ask(Order(batch, producer), bool))
        )

    def _ask(self, order: Order, result_of: Callable[[int], _Result]) -> "Future[_Result]":
        future: Future[_Result] = Future()
        with self._lock:  # so that answers come in the order of those who wait
            if self._died:
                future.set_exception(self._died)
            else:
                self._asked[order.put].append((future, result_of))
                with contextlib.suppress(OSError):  # it has just died, and the thread hears of it
                    self._connection.send(order)
        return future

    def listen(self) -> None:
        """Take its answers from now on."""
        self._thread.start()

    def end(self) -> None:
        """Wait until the process and the thread have ended; the process was told to."""
        self.process.join()
        if self._thread.ident:
            self._thread.join()
        self._connection.close()

    def _listen(self) -> None:
        while answer := self._answer():
            future, result_of = self._asked[answer.put].popleft()
            if isinstance(answer.result, Exception):
                future.set_exception(answer.result)
            else:
                future.set_result(result_of(answer.result))

    def _answer(self) -> Answer | None:
        """The next answer; None once the process is dead, and whoever waits knows it."""
        try:
            found: Answer = self._connection.recv()
            return found
        except (EOFError, OSError):
            self.process.join(1)
            died = _died(self.process.exitcode)
        except Exception as error:  # an answer that cannot be read
            died = UserError(f"a tokenizing process gave no answer ({type(error).__name__}: {error})")
        with self._lock:
            self._died = died
        for future, _ in (*self._asked[False], *self._asked[True]):
            future.set_exception(died)
        return None


def _died(status: int | None) -> UserError:
    again = "run the same command again: the job goes on where it was"
    if status == -signal.SIGKILL:
        hint = f"{again}; EMBEDMILL_TOKENIZERS=2 starts only two"
        return UserError("a tokenizing process was killed", "most often the machine is out of memory", hint)
    return UserError(f"a tokenizing process died (exit status {status})", "its own lines say why", again)
