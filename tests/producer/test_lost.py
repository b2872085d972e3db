"""What is lost, against a simulation of Redis and workers in which it is known."""

import random

import pytest

from contract.heartbeat import Heartbeat
from producer.lost import MISSED_AFTER, Place, lost, places

TIMEOUT = 30.0


def beat(
    batch: int | None, silent: float, *, job: str = "j", state: str = "computing", worker: str = "w/0"
) -> Heartbeat:
    return Heartbeat.model_validate(
        {"worker": worker, "state": state, "beat": 1000.0 - silent, "since": 900.0, "job": job, "batch": batch}
    )


@pytest.mark.parametrize(
    ("heartbeats", "queued", "held", "place"),
    [
        ([beat(1, 2)], (), (1,), Place.WORKED_ON),
        ([beat(1, 29.9)], (), (1,), Place.WORKED_ON),
        ([beat(1, 30.1)], (), (1,), Place.SILENT),
        ([beat(1, 30.1)], (), (), Place.SILENT),
        ([beat(1, 30.1), beat(1, 1, worker="v/0")], (), (1,), Place.WORKED_ON),
        ([beat(1, 30.1)], (1,), (1,), Place.QUEUED),
        ([beat(1, 2, job="other")], (1,), (), Place.QUEUED),
        ([beat(1, 2, job="other")], (), (), Place.NOWHERE),
        ([beat(2, 2)], (), (1,), Place.TAKEN),
        ([beat(None, 2, state="starting")], (), (1,), Place.ABOUT_TO_START),
        ([beat(None, 31, state="starting")], (), (1,), Place.TAKEN),
        ([], (), (), Place.NOWHERE),
    ],
)
def test_where_a_batch_is(
    heartbeats: list[Heartbeat], queued: tuple[int, ...], held: tuple[int, ...], place: Place
) -> None:
    found = places("j", [1], heartbeats, queued=queued, held=held, now=1000.0, timeout=TIMEOUT)
    assert found == {1: place}


@pytest.mark.parametrize(
    ("place", "after"),
    [
        (Place.WORKED_ON, None),
        (Place.QUEUED, None),
        (Place.ABOUT_TO_START, None),
        (Place.SILENT, 0.0),
        (Place.TAKEN, TIMEOUT),
        (Place.NOWHERE, MISSED_AFTER),
    ],
)
def test_when_it_is_lost(place: Place, after: float | None) -> None:
    def at(seconds: float) -> set[int]:
        return lost({1: place}, {1: 50.0}, now=50.0 + seconds, timeout=TIMEOUT)

    if after is None:
        assert at(1e6) == set()
    else:
        assert at(after) == {1}
        assert after == 0.0 or at(after - 0.01) == set()


def test_in_a_simulation_a_dead_workers_batch_is_lost_within_the_timeout_and_a_living_ones_never() -> None:
    """Workers take batches, beat every two seconds, finish, and die at any instant; the producer looks every second."""
    dice = random.Random(7)
    late = []
    for _ in range(200):
        queued, held = set(range(8)), set[int]()
        hands: dict[str, int | None] = {f"w/{number}": None for number in range(3)}
        beats: dict[str, Heartbeat] = {}
        dies = {worker: dice.uniform(0, 60) if dice.random() < 0.5 else 1e9 for worker in hands}
        ends: dict[str, float] = {}
        died: dict[int, float] = {}
        since: dict[int, tuple[Place, float]] = {}
        for step in range(1200):
            now = 1000.0 + step / 10
            for worker, batch in list(hands.items()):
                if now - 1000 >= dies[worker]:
                    if batch is not None:
                        died[batch], hands[worker] = now, None
                        dies[worker] = -1.0
                    continue
                if batch is not None and now >= ends[worker]:
                    held.discard(batch)
                    hands[worker] = None
                elif batch is None and queued:
                    hands[worker] = queued.pop()
                    held.add(hands[worker] or 0)
                    ends[worker] = now + dice.uniform(1, 50)
                state = "idle" if hands[worker] is None else "computing"
                beats[worker] = Heartbeat.model_validate(
                    {"worker": worker, "state": state, "beat": now - dice.uniform(0, 2), "since": now, "job": "j"}
                    | {"batch": hands[worker]}
                )
            if step % 10 == 0:
                out = queued | held | died.keys()
                found = places("j", out, beats.values(), queued=queued, held=held, now=now, timeout=TIMEOUT)
                since = {
                    batch: since[batch] if batch in since and since[batch][0] is place else (place, now)
                    for batch, place in found.items()
                }
                gone = lost(found, {batch: at for batch, (_, at) in since.items()}, now=now, timeout=TIMEOUT)
                assert gone <= died.keys(), "a batch in a living worker's hands was taken for lost"
                for batch in gone:
                    late.append(now - died.pop(batch))
                    held.discard(batch)
                    queued.add(batch)
                    del since[batch]
    assert len(late) > 100
    assert max(late) <= TIMEOUT + 3
