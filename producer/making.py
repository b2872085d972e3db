"""Makes batches and puts them into Redis: in a tokenizing process, or in the producer's own.

A tokenizing process is asked for a batch twice: to make it, and, once there is room for its bytes, to put them into
Redis. Only numbers and sizes pass between it and the producer; the texts and the bytes never do. It tries once: how
long a Redis is waited for, and what is said of it, is the producer's to decide, which asks again.
"""

import contextlib
import os
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import NamedTuple

import pyarrow as pa
from redis import RedisError

from contract.errors import UserError
from contract.job import Job
from contract.redis.connection import client
from contract.redis.producing import Publication
from contract.redis.refusals import refusal
from contract.settings import settings
from producer.batches import Work


class Maker:
    """Makes a job's batches, and keeps their bytes until Redis has them. It has a connection to Redis of its own."""

    def __init__(self, work: Work) -> None:
        self._work, self._redis = work, client()
        self._made: dict[int, Publication] = {}

    def make(self, batch: int) -> int:
        """Make a batch; returns its bytes.

        Raises:
            UserError: its rows cannot be read or tokenized, or it is larger than a worker takes.
        """
        made = self._made[batch] = Publication(self._work.job, batch, self._work.payload(batch))
        return made.size

    def put(self, batch: int, producer: str) -> bool:
        """Put a batch that was made into Redis, and forget it.

        Args:
            batch: its number.
            producer: the id of the producer that has claimed it.

        Returns:
            Whether it was published: another producer may have the claim by now.

        Raises:
            RedisError: Redis does not answer, or is full; the batch may be put again.
            UserError: it refuses this user, however long one waits.
        """
        try:
            own = self._made[batch](self._redis, producer)
        except RedisError as error:
            raise refusal(error) or error from None
        del self._made[batch]
        return own


class Order(NamedTuple):
    """What the producer asks a tokenizing process for."""

    batch: int
    producer: str | None = None
    """Puts a batch that was made into Redis, for the producer of this id; None: makes it."""

    @property
    def put(self) -> bool:
        return self.producer is not None


class Answer(NamedTuple):
    """What a tokenizing process answers. Orders of one kind are answered in their order."""

    put: bool
    """The order's."""
    result: int | Exception
    """The batch's bytes, or whether it was published; or what ``Maker`` raised."""


def serve(connection: Connection, work: Work, environment: Mapping[str, str]) -> None:
    """A tokenizing process: answer orders until the producer is gone. A batch is put while the next one is made.

    Args:
        connection: takes each ``Order``, gives an ``Answer``.
        work: what to make batches of.
        environment: the producer's variables; those of the server that forked this process may be older.
    """
    os.environ.clear()
    os.environ.update(environment)
    settings.cache_clear()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core is what this process is for
    pa.set_cpu_count(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    maker, lock = Maker(work), threading.Lock()

    def answer(order: Order) -> None:
        result = _result(maker, order, work.job)
        with lock, contextlib.suppress(ConnectionError):  # the producer is gone
            connection.send(Answer(order.put, result))

    with ThreadPoolExecutor(1) as apart, contextlib.suppress(EOFError, ConnectionError):
        while True:
            order: Order = connection.recv()
            if order.put:
                answer(order)
            else:
                apart.submit(answer, order)


def _result(maker: Maker, order: Order, job: Job) -> int | Exception:
    """What an order's call returns or raises, as something that survives the way to the producer."""
    try:
        return maker.make(order.batch) if order.producer is None else maker.put(order.batch, order.producer)
    except (UserError, RedisError) as error:
        return error
    except BaseException as error:  # a panic of the Rust tokenizer is no Exception
        rows, what = job.row_range(order.batch), "put into Redis" if order.put else "tokenized"
        found = f"rows {rows.start} to {rows.stop - 1} of {job.dataset} cannot be {what}"
        shown = UserError(f"{found} ({type(error).__name__}: {error})", hint="report this, with the lines above")
        traceback.print_exc()
        return shown


def _end_with_parent() -> None:
    """Also after a SIGKILL of the producer, and in the middle of a batch."""
    if parent := parent_process():
        parent.join()
        os._exit(1)
