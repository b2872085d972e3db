"""What is said of a job that does not move, in a thousand simulated states: true, one line, and no false alarm."""

import random
import re
from typing import Any

import pytest

from contract.redis.heartbeat import Heartbeat
from producer.reasons import reason, workers_line
from producer.view import View

JOB, OTHER, NOW, TIMEOUT = "reviews-train-0123456789.abcdef", "imdb-train-9876543210.fedcba", 5000.0, 30.0


def worker(name: str = "host:1:2/0", **fields: Any) -> Heartbeat:
    return Heartbeat.model_validate({"worker": name, "state": "idle", "beat": NOW - 1, "since": NOW - 80} | fields)


def view(*workers: Heartbeat, **fields: Any) -> View:
    chosen: dict[str, Any] = {"out": frozenset({3, 4}), "queued": 1, "commands": (worker("host:1:2"),)} | fields
    return View(job=JOB, now=NOW, timeout=TIMEOUT, workers=workers, **chosen)


FULL = "No space left on device: /data/output"
REFUSES = (worker("host:1:2", refuses={JOB: "no engine bge in /engines"}),)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (view(), r"no worker is alive; start one: celery -A worker worker"),
        (view(worker(beat=NOW - 40)), r"no worker is alive; start one: celery -A worker worker"),
        (
            view(worker(state="computing", job=JOB, batch=3, beat=NOW - 40)),
            r"batch 3 is in the hands of host:1:2/0, silent for 40 s: it is published again\. No worker is alive",
        ),
        (
            view(worker(state="computing", job=JOB, batch=3)),
            r"1 worker computes; the longest is at batch 3, since 0:01:20",
        ),
        (
            view(worker(state="computing", job=JOB, batch=3, beat=NOW - 12), worker("host:1:2/1")),
            r"batch 3 is in the hands of host:1:2/0, silent for 12 s: if it stays silent, it is published again in 18",
        ),
        (
            view(worker(state="waiting", job=JOB, batch=3, waits_for=FULL)),
            r"1 worker waits: No space left on device: /data/output \(since 0:01:20\)",
        ),
        (
            view(worker(state="computing", job=OTHER, batch=0), others={OTHER: 1200}),
            r"the only worker computes job imdb-train-9876543210, of which 1,200 batches wait; each job gets",
        ),
        (
            view(
                worker(state="computing", job=OTHER, batch=0), others={OTHER: 1200}, priorities={OTHER: 5.0, JOB: -1.0}
            ),
            r"the only worker computes job imdb-train-9876543210, of which 1,200 batches wait; its priority 5 goes "
            r"before this job's -1$",
        ),
        (
            view(worker(state="computing", job=OTHER, batch=0), others={"a.f": 1}, priorities={"a.f": 2.0}),
            r"the only worker computes job imdb-train-9876543210, of which 0 batches wait; 1 batch waits of job a, "
            r"whose priority 2 goes before this job's 0$",
        ),
        (
            view(worker(state="waiting", job=OTHER, batch=0, waits_for=FULL)),
            r"1 worker, none free: one waits for No space left on device: /data/output with job imdb-train-9876543210",
        ),
        (view(worker(), commands=REFUSES), r"the only worker cannot serve this job: no engine bge in /engines"),
        (
            view(worker(), worker("host:1:2/1"), commands=REFUSES),
            r"none of 2 workers can serve this job: no engine bge in /engines",
        ),
        (
            view(worker(state="starting", waits_for="its engine: no engine in /engines")),
            r"1 worker waits for its engine: no engine in /engines \(since 0:01:20\)",
        ),
        (
            view(worker(beat=NOW - 20, state="computing", job=OTHER, batch=1)),
            r"no worker has been heard of for 20 s; dead in 10 s",
        ),
        (view(worker()), r"1 worker idle, about to take the next batch"),
        (view(out=frozenset(), making=2, unpublished=7), r"2 batches being tokenized"),
        (
            view(out=frozenset(), elsewhere=3, producers=2),
            r"3 batches with another producer; those of one that died are taken over 30 s after it was last heard of",
        ),
        (view(out=frozenset(), elsewhere=1, producers=4), r"1 batch with 3 other producers; "),
    ],
)
def test_each_state_has_its_line(seen: View, says: str) -> None:
    assert re.match(says, reason(seen).line), reason(seen).line


def a_state(dice: random.Random) -> View:
    """Any state that a job can be seen in, drawn from what workers do."""
    workers, commands = [], []
    for number in range(dice.choice([0, 1, 1, 2, 3, 8])):
        command = f"host{number // 2}:1:{number // 2}"
        fields: dict[str, Any] = {"beat": NOW - dice.choice([0.5, 2, 5, 12, 29, 31, 300])}
        kind = dice.choice(["idle", "here", "here", "other", "waiting", "waiting other", "starting"])
        if kind != "idle" and kind != "starting":
            job = OTHER if "other" in kind else JOB
            state = "waiting" if "waiting" in kind else "computing"
            fields |= {"state": state, "job": job, "batch": dice.randrange(6)}
            fields |= {"waits_for": FULL} if state == "waiting" else {}
        if kind == "starting":
            fields |= {"state": "starting", "waits_for": "its engine, which is being loaded"}
        workers.append(worker(f"{command}/{number % 2}", **fields))
        refuses = {JOB: dice.choice(["no engine bge in /engines", FULL])} if dice.random() < 0.3 else {}
        commands.append(worker(command, beat=fields["beat"], refuses=refuses))
    return view(
        *workers,
        commands=tuple(commands),
        out=frozenset(dice.sample(range(6), dice.randrange(6))),
        queued=dice.randrange(4),
        making=dice.randrange(3),
        unpublished=dice.randrange(3),
        others={OTHER: dice.randrange(1, 2000)} if dice.random() < 0.5 else {},
    )


def test_in_a_thousand_states_the_line_is_true_and_no_alarm_is_false() -> None:
    dice, kinds = random.Random(11), set()
    for _ in range(1000):
        seen = a_state(dice)
        found = reason(seen)
        says, alive = found.line, [one for one in seen.workers if NOW - one.beat <= TIMEOUT]
        kinds.add(found.kind.split()[0])
        assert len(says.splitlines()) == 1
        assert not re.search(r"\b1 (workers|batches|shards)\b|\b[02-9]\d* (worker|batch)\b", says), says
        here = [one for one in alive if one.job == JOB]
        if "no worker is alive" in says.lower():
            assert not alive, says
        if not alive and seen.out:
            assert "celery -A worker worker" in says, says
        if "cannot serve" in says or "can serve" in says:
            assert alive
            assert not here
            lively = [one for one in seen.commands if JOB in one.refuses and NOW - one.beat <= TIMEOUT]
            reasons = {one.worker: one.refuses[JOB] for one in lively}
            assert all(reasons[one.command] in says for one in alive), says
            refusing = {one.worker for one in seen.commands if JOB in one.refuses and NOW - one.beat <= TIMEOUT}
            assert {one.command for one in alive} <= refusing, says
        if found.kind == "computing":
            assert any(one.state == "computing" for one in here)
            assert not any(one.state == "waiting" for one in here), says
        if found.kind.startswith("waits"):
            assert any(one.state == "waiting" and one.waits_for in says for one in here), says
        if found.kind == "busy":
            assert not here
            assert any(one.job == OTHER for one in alive), says
        if found.kind.startswith("late"):
            assert all(NOW - one.beat > 6 for one in here), says
        if found.kind.startswith("silent"):
            assert any(one.batch in seen.out and one.job == JOB and NOW - one.beat > TIMEOUT for one in seen.workers)
        if not seen.out:
            assert found.kind in ("tokenizing", "ending"), says
        line = workers_line(seen)
        assert line.startswith(f"{len(alive)} worker")
        assert "\n" not in line
    assert {"no", "computing", "waits", "busy", "refused", "silent", "starting", "tokenizing", "ending"} <= kinds


def test_the_workers_line_says_what_each_does() -> None:
    seen = view(
        worker("a:1:1/0", state="computing", job=JOB, batch=3),
        worker("b:1:1/0", state="computing", job=OTHER, batch=0),
        worker("c:1:1/0", state="waiting", job=JOB, batch=4, waits_for=FULL),
        worker("d:1:1/0", beat=NOW - 50),
        worker("host:1:2/0"),
        commands=REFUSES,
    )
    assert workers_line(seen) == (
        "4 workers: 1 computing, 1 computing for other jobs, 1 waits: No space left on device: /data/output "
        "(since 0:01:20), 1 cannot serve this job: no engine bge in /engines, 1 silent"
    )
    assert workers_line(view()) == "0 workers"
