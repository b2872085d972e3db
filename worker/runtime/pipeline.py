"""Micro-batches on a GPU, two in flight: while one is computed, the other's results are read and the next is filled."""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from worker.runtime.gpu_lock import GpuLock
from worker.runtime.microbatch import MicroBatch


class _Event(Protocol):
    def synchronize(self) -> object:
        """Wait until the GPU has come to it."""
        ...


class Slot(Protocol):
    """Buffers of one micro-batch in flight."""

    @property
    def done(self) -> _Event:
        """The GPU comes to it when the slot's results are on the host."""
        ...


_Slot = TypeVar("_Slot", bound=Slot)


def run_pipelined(
    microbatches: Sequence[MicroBatch],
    slots: Sequence[_Slot],
    lock: GpuLock,
    start: Callable[[_Slot, MicroBatch], None],
    collect: Callable[[_Slot, MicroBatch], None],
) -> None:
    """Compute micro-batches, in turn in each of the slots. However it ends, no slot is in flight afterwards.

    Args:
        microbatches: of one batch.
        slots: two or more.
        lock: the GPU's.
        start: fills a slot and starts its micro-batch, without waiting for it.
        collect: takes a micro-batch's results from its slot, after ``done``.
    """
    in_flight: deque[tuple[_Slot, MicroBatch]] = deque()

    def collect_first() -> None:
        slot, micro = in_flight.popleft()
        slot.done.synchronize()
        collect(slot, micro)

    try:
        with lock.held():
            for micro, slot in zip(microbatches, itertools.cycle(slots), strict=False):
                if len(in_flight) == len(slots):
                    collect_first()
                start(slot, micro)
                in_flight.append((slot, micro))
        # The lock is free: while the last are computed and read, another process starts its first.
        while in_flight:
            collect_first()
    finally:
        # Only after an error: the GPU must not write into buffers that the next call fills.
        for slot, _ in in_flight:
            slot.done.synchronize()
