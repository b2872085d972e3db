"""Which slot is filled when, and what is left in flight, with slots that only write down what happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from worker.runtime.microbatch import MicroBatch
from worker.runtime.pipeline import run_pipelined


class Recorder:
    """Two slots, a lock, and what happened to them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.slots = [Slot(self.events, name) for name in "AB"]

    @contextmanager
    def held(self) -> Iterator[None]:
        self.events.append("lock")
        yield
        self.events.append("unlock")

    def run(self, microbatches: int, failing: str = "") -> None:
        def start(slot: "Slot", micro: MicroBatch) -> None:
            self.note(f"start {micro.length}{slot.name}", failing)

        def collect(slot: "Slot", micro: MicroBatch) -> None:
            self.note(f"collect {micro.length}{slot.name}", failing)

        made = [MicroBatch(np.arange(1), number, 1) for number in range(microbatches)]
        lock: Any = self
        run_pipelined(made, self.slots, lock, start, collect)

    def note(self, event: str, failing: str) -> None:
        if event == failing:
            raise ValueError(event)
        self.events.append(event)


class Slot:
    def __init__(self, events: list[str], name: str) -> None:
        self._events, self.name = events, name

    @property
    def done(self) -> "Slot":
        return self

    def synchronize(self) -> None:
        self._events.append(f"wait {self.name}")


def test_two_are_in_flight_and_the_lock_is_free_while_the_last_are_read() -> None:
    recorder = Recorder()
    recorder.run(3)
    assert recorder.events == [
        *("lock", "start 0A", "start 1B", "wait A", "collect 0A", "start 2A", "unlock"),
        *("wait B", "collect 1B", "wait A", "collect 2A"),
    ]


def test_no_micro_batch_is_no_work() -> None:
    recorder = Recorder()
    recorder.run(0)
    assert recorder.events == ["lock", "unlock"]


@pytest.mark.parametrize(
    ("failing", "left"),
    [("start 2A", ["wait B"]), ("collect 0A", ["wait B"]), ("collect 1B", ["wait A"]), ("start 1B", ["wait A"])],
)
def test_after_an_error_nothing_is_in_flight(failing: str, left: list[str]) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=failing):
        recorder.run(3, failing)
    assert recorder.events[-len(left) :] == left
