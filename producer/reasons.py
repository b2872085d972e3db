"""Why nothing moves, in one line. Pure functions over what Redis shows of a job and its workers."""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from contract.redis.heartbeat import Heartbeat
from contract.words import count
from producer.view import View


@dataclass(frozen=True)
class Reason:
    """What keeps a job from moving."""

    kind: str
    """Stays the same while the same thing keeps it."""
    line: str
    """One line, with what to do about it where something does."""


_LATE = 6.0
"""Seconds of silence after which a worker, which beats every two, has probably died."""

START = "start one: celery -A worker worker"


def reason(view: View) -> Reason:
    """Why no shard has come for a while. Every state has a reason, if only that a worker computes."""
    for rule in (_nothing_out, _at_this_job, _lost_with_a_worker, _no_worker, _refused, _workers_start, _workers_busy):
        if found := rule(view):
            return found
    return _about_to_be_taken(view)


def _nothing_out(view: View) -> Reason | None:
    if view.out:
        return None
    if view.making or view.unpublished:
        return Reason("tokenizing", f"{count(view.making, 'batch', 'batches')} being tokenized")
    if view.elsewhere:
        batches, left = count(view.elsewhere, "batch", "batches"), f"{view.timeout:.0f} s after it was last heard of"
        who = "another producer" if view.producers < 3 else f"{view.producers - 1} other producers"
        return Reason("elsewhere", f"{batches} with {who}; those of one that died are taken over {left}")
    return Reason("ending", "every batch has its shard")


def _at_this_job(view: View) -> Reason | None:
    """A worker has one of the job's batches: it waits, is late with its heartbeat, or computes."""
    here = [one for one in view.alive() if one.job == view.job]
    if waiting := [one for one in here if one.state == "waiting"]:
        first = min(waiting, key=lambda one: one.since)
        who = count(len(waiting), "worker waits", "workers wait")
        return Reason(f"waits {first.waits_for}", f"{who}: {first.waits_for} (since {_for(view, first.since)})")
    if here and all(one.silent(view.now) > _LATE for one in here):
        first = min(here, key=lambda one: one.beat)
        left = view.timeout - first.silent(view.now)
        return Reason(
            f"late {first.worker}",
            f"{_batch_of(view, first)}: if it stays silent, it is published again in {left:.0f} s",
        )
    if here:
        first = min(here, key=lambda one: one.since)
        who = count(len(here), "worker computes", "workers compute")
        return Reason("computing", f"{who}; the longest is at batch {first.batch}, since {_for(view, first.since)}")
    return None


def _lost_with_a_worker(view: View) -> Reason | None:
    alive = view.alive()
    silent = [one for one in view.workers if one not in alive and one.job == view.job and one.batch in view.out]
    if not silent:
        return None
    first = max(silent, key=lambda one: one.beat)
    start = "" if alive else f". No worker is alive; {START}"
    return Reason(f"silent {first.worker}", f"{_batch_of(view, first)}: it is published again{start}")


def _no_worker(view: View) -> Reason | None:
    alive = view.alive()
    if not alive:
        return Reason("no worker", f"no worker is alive; {START}")
    first = max(alive, key=lambda one: one.beat)
    silent = first.silent(view.now)
    if silent > _LATE:
        left = view.timeout - silent
        return Reason("dying", f"no worker has been heard of for {silent:.0f} s; dead in {left:.0f} s")
    return None


def _refused(view: View) -> Reason | None:
    if _able(view):
        return None
    alive, refusals = view.alive(), view.refusals()
    why = "; ".join(sorted({refusals[one.command] for one in alive}))
    who = "the only worker cannot" if len(alive) == 1 else f"none of {count(len(alive), 'worker')} can"
    return Reason(f"refused {why}", f"{who} serve this job: {why}")


def _workers_start(view: View) -> Reason | None:
    able = _able(view)
    if not all(one.state == "starting" for one in able):
        return None
    first = min(able, key=lambda one: one.since)
    who, what = count(len(able), "worker waits", "workers wait"), first.waits_for or "its first child"
    return Reason(f"starting {what}", f"{who} for {what} (since {_for(view, first.since)})")


def _workers_busy(view: View) -> Reason | None:
    able = _able(view)
    busy = [one for one in able if one.job]
    return Reason("busy", _busy(view, able, busy)) if busy else None


def _about_to_be_taken(view: View) -> Reason:
    if view.queued:
        return Reason("idle", f"{count(len(_able(view)), 'worker')} idle, about to take the next batch")
    return Reason("handed over", f"{count(len(view.out), 'batch', 'batches')} between Redis and a worker")


def _able(view: View) -> list[Heartbeat]:
    """Workers that are alive and can serve the job."""
    refusals = view.refusals()
    return [one for one in view.alive() if one.command not in refusals]


def _batch_of(view: View, one: Heartbeat) -> str:
    return f"batch {one.batch} is in the hands of {one.worker}, silent for {one.silent(view.now):.0f} s"


def _busy(view: View, able: list[Heartbeat], busy: list[Heartbeat]) -> str:
    jobs = Counter(one.job for one in busy if one.job)
    key, _ = jobs.most_common(1)[0]
    waits = [one for one in busy if one.job == key and one.state == "waiting"]
    if waits:
        first = min(waits, key=lambda one: one.since)
        what = f"waits for {first.waits_for} with job {_name(key)} (since {_for(view, first.since)})"
        return f"{count(len(busy), 'worker')}, none free: one {what}"
    who = "the only worker computes" if len(able) == 1 else f"{count(len(busy), 'worker computes', 'workers compute')}"
    more = f" and {count(len(jobs) - 1, 'other')}" if len(jobs) > 1 else ""
    return f"{who} job {_name(key)}{more}, of which {_waiting(view, key)}; {_next(view, key)}"


def _next(view: View, key: str) -> str:
    """Which of the jobs that wait gets the next batch, where workers compute one of this key."""
    ahead = sorted(key for key in view.others if view.priorities.get(key, 0.0) > view.priority)
    if not ahead:
        return "each job gets every next batch in turn"
    first = key if key in ahead else max(ahead, key=lambda one: view.priorities[one])
    whose = "its" if first == key else f"{_waiting(view, first)} of job {_name(first)}, whose"
    return f"{whose} priority {view.priorities[first]:g} goes before this job's {view.priority:g}"


def _waiting(view: View, key: str) -> str:
    return f"{count(view.others.get(key, 0), 'batch waits', 'batches wait')}"


def _name(key: str) -> str:
    return key.rpartition(".")[0] or key


def _for(view: View, since: float) -> str:
    return str(timedelta(seconds=round(max(0.0, view.now - since))))


def producers_line(view: View) -> str:
    """How many producers share the job: ``3 producers share this job``; empty for one."""
    return f"{view.producers} producers share this job" if view.producers > 1 else ""


def workers_line(view: View) -> str:
    """What all workers do: ``3 workers: 2 computing, 1 waits: No space left on device: /data (since 0:01:20)``."""
    alive = view.alive()
    refusals = view.refusals()
    parts = []
    here = [one for one in alive if one.state == "computing" and one.job == view.job]
    elsewhere = [one for one in alive if one.state == "computing" and one.job != view.job]
    refusing = [one for one in alive if one.command in refusals and one not in here and one not in elsewhere]
    rest = [one for one in alive if one not in refusing]
    if here:
        parts.append(f"{len(here)} computing")
    if elsewhere:
        parts.append(f"{len(elsewhere)} computing for other jobs")
    if idle := [one for one in rest if one.state == "idle"]:
        parts.append(f"{len(idle)} idle")
    parts += [_state(view, one) for one in rest if one.state in ("starting", "waiting")]
    for why, number in Counter(refusals[one.command] for one in refusing).most_common():
        parts.append(f"{number} cannot serve this job: {why}")
    silent = [one for one in view.workers if one not in alive and one.silent(view.now) < 10 * view.timeout]
    if silent:
        parts.append(f"{len(silent)} silent")
    return f"{count(len(alive), 'worker')}{': ' if parts else ''}{', '.join(parts)}"


def _state(view: View, one: Heartbeat) -> str:
    verb = "waits" if one.state == "waiting" else "starts, waits for"
    colon = ":" if one.state == "waiting" else ""
    return f"1 {verb}{colon} {one.waits_for or 'its first child'} (since {_for(view, one.since)})"
