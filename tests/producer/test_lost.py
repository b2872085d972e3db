"""What is lost, against a simulation of Redis and workers in which it is known."""

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from contract.redis.heartbeat import Heartbeat
from producer.lost import LISTENED, MISSING_AFTER, BatchState, Sighting, all_in_sight, batch_states, lost, sightings
from producer.view import View

TIMEOUT = 30.0


def view(*workers: Heartbeat, out: Iterable[int] = (1,), now: float = 1000.0) -> View:
    return View("j", now, TIMEOUT, workers=workers, out=frozenset(out))


def beat(
    batch: int | None, silent: float, *, job: str = "j", state: str = "computing", worker: str = "w/0"
) -> Heartbeat:
    return Heartbeat.model_validate(
        {"worker": worker, "state": state, "beat": 1000.0 - silent, "since": 900.0, "job": job, "batch": batch}
    )


@pytest.mark.parametrize(
    ("heartbeats", "queued", "held", "state"),
    [
        ([beat(1, 2)], (), (1,), BatchState.COMPUTING),
        ([beat(1, 25.9)], (), (1,), BatchState.COMPUTING),
        ([beat(1, 26.1)], (), (1,), BatchState.ORPHANED),
        ([beat(1, 26.1)], (), (), BatchState.ORPHANED),
        ([beat(1, 26.1), beat(1, 1, worker="v/0")], (), (1,), BatchState.COMPUTING),
        ([beat(1, 26.1)], (1,), (1,), BatchState.QUEUED),
        ([beat(1, 2, job="other")], (1,), (), BatchState.QUEUED),
        ([beat(1, 2, job="other")], (), (), BatchState.MISSING),
        ([beat(2, 2)], (), (1,), BatchState.TAKEN),
        ([beat(None, 2, state="starting")], (), (1,), BatchState.STARTING),
        ([beat(None, 31, state="starting")], (), (1,), BatchState.TAKEN),
        ([], (), (), BatchState.MISSING),
    ],
)
def test_the_state_of_a_batch(
    heartbeats: list[Heartbeat], queued: tuple[int, ...], held: tuple[int, ...], state: BatchState
) -> None:
    assert batch_states(view(*heartbeats), queued=queued, held=held) == {1: state}


@pytest.mark.parametrize(
    ("state", "after"),
    [
        (BatchState.COMPUTING, None),
        (BatchState.QUEUED, None),
        (BatchState.STARTING, None),
        (BatchState.ORPHANED, LISTENED),
        (BatchState.TAKEN, TIMEOUT),
        (BatchState.MISSING, MISSING_AFTER),
    ],
)
def test_when_it_is_lost(state: BatchState, after: float | None) -> None:
    def at(seconds: float) -> set[int]:
        return lost({1: Sighting(state, 50.0)}, now=50.0 + seconds, timeout=TIMEOUT)

    if after is None:
        assert at(1e6) == set()
    else:
        assert at(after) == {1}
        assert at(after - 0.01) == set()


@pytest.mark.parametrize(
    ("heartbeats", "queued", "in_sight"),
    [
        ([beat(1, 1)], 1, True),
        ([beat(1, 1)], 0, False),
        ([beat(1, 27)], 1, False),
        ([beat(1, 1), beat(1, 1, worker="v/0")], 0, False),
        ([beat(1, 1), beat(7, 1, worker="v/0")], 0, False),  # 7 has its shard by now
        ([beat(1, 1), beat(2, 1, job="other", worker="v/0")], 0, False),
    ],
)
def test_a_lost_batch_is_not_taken_for_one_that_is_in_sight(
    heartbeats: list[Heartbeat], queued: int, in_sight: bool
) -> None:
    assert all_in_sight(replace(view(*heartbeats, out=(1, 2)), queued=queued)) == in_sight


@pytest.mark.parametrize("beats_again_after", [2.0, None])
def test_after_an_outage_of_redis_a_worker_may_still_be_heard_of(beats_again_after: float | None) -> None:
    """Nobody was heard of for a minute, because Redis was away, or because its clock was set."""
    seen: dict[int, Sighting] = {}
    gone: set[int] = set()
    for passed in range(10):
        back = beats_again_after is not None and passed >= beats_again_after
        now = view(beat(1, 0 if back else 60 + passed))
        seen = sightings(batch_states(now, queued=(), held=(1,)), seen, float(passed))
        gone |= lost(seen, now=float(passed), timeout=TIMEOUT)
    assert gone == (set() if beats_again_after else {1})


def test_a_missing_batch_is_waited_for_as_long_as_the_caller_says() -> None:
    seen = {1: Sighting(BatchState.MISSING, 50.0)}
    assert lost(seen, now=50.1, timeout=TIMEOUT, missing_after=0.1)
    assert not lost(seen, now=50.1, timeout=TIMEOUT, missing_after=0.2)


def test_a_batch_has_its_state_since_it_was_first_seen_in_it() -> None:
    first = sightings({1: BatchState.QUEUED, 2: BatchState.TAKEN}, {}, 10.0)
    later = sightings({1: BatchState.TAKEN, 2: BatchState.TAKEN, 3: BatchState.MISSING}, first, 12.0)
    assert later == {
        1: Sighting(BatchState.TAKEN, 12.0),
        2: Sighting(BatchState.TAKEN, 10.0),
        3: Sighting(BatchState.MISSING, 12.0),
    }


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
        seen: dict[int, Sighting] = {}
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
                states = batch_states(view(*beats.values(), out=out, now=now), queued=queued, held=held)
                seen = sightings(states, seen, now)
                gone = lost(seen, now=now, timeout=TIMEOUT)
                assert gone <= died.keys(), "a batch in a living worker's hands was taken for lost"
                for batch in gone:
                    late.append(now - died.pop(batch))
                    held.discard(batch)
                    queued.add(batch)
                    del seen[batch]
    assert len(late) > 100
    assert max(late) <= TIMEOUT + 3
