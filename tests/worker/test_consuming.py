"""From which jobs' queues a worker takes first."""

from types import SimpleNamespace
from typing import Any

import pytest

from contract.job import JobKey
from contract.redis.keys import queue_of
from worker import consuming
from worker.consuming import ByPriority

A, B, C = map(JobKey, "abc")


def taken(priorities: dict[JobKey, float], waiting: dict[JobKey, int], monkeypatch: pytest.MonkeyPatch) -> str:
    """The jobs whose messages are taken, in this order, as Kombu asks the cycle."""
    monkeypatch.setattr(consuming, "jobs", SimpleNamespace(served=priorities))
    kind: Any = ByPriority  # Kombu's classes have no types
    cycle = kind()
    found, left = "", {queue_of(job): [job] * number for job, number in waiting.items()}
    cycle.update(list(left))
    while queue := next((queue for queue in cycle.consume(len(left)) if left[queue]), None):
        found += left[queue].pop()
        cycle.rotate(queue)
    return found


def test_jobs_of_one_priority_take_turns_and_a_higher_one_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = {A: 3, B: 3, C: 2}
    assert taken({A: 0, B: 0, C: 0}, waiting, monkeypatch) == "abcabcab"
    assert taken({A: 0, B: 0, C: 5}, waiting, monkeypatch) == "ccababab"
    assert taken({A: -1, B: 5, C: 5}, waiting, monkeypatch) == "bcbcbaaa"
    assert taken({B: 7}, waiting, monkeypatch) == "bbbacaca"  # what is not served any more waits its turn
