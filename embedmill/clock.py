"""When the steps of one run began: what the next estimate begins with, and how far off the last one was."""

from collections.abc import Callable
from time import monotonic

from contract.job import Job
from producer.console import print_note
from producer.estimate import how_far_off, kept_estimate
from producer.pace import START, Pace
from producer.progress import Progress

_LEAST = 2.0
"""Seconds of computing that tell a speed."""


class Clock:
    """Takes the time of a run, from its making on.

    Args:
        now: the time in seconds, from any start.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.builds = False
        """Whether the run builds the engine first, which is in no estimate: a dry run builds it itself."""
        self._now = now
        self._began = now()
        self._computing = self._embedded = 0.0
        self._progress: Progress | None = None

    def see(self, progress: Progress) -> None:
        """The run is so far. It has begun to compute once a worker has a batch."""
        view = progress.view
        if not self._computing and ((view and any(worker.job for worker in view.alive())) or progress.new.rows):
            self._computing = self._now()
        self._embedded, self._progress = self._now(), progress

    def verified(self, job: Job, sample: int | None) -> None:
        """The run has ended: keep its pace, and say how far off its estimate was.

        Args:
            job: the job.
            sample: rows that were verified; None for all.
        """
        ended, progress = self._now(), self._progress
        if progress is None:
            return
        tokens, seconds = progress.totals.tokens, self._embedded - self._computing
        whole = not progress.before.rows and bool(tokens)
        if whole and not progress.totals.spared and seconds >= _LEAST:
            speed = tokens / seconds
            again = min(sample or job.rows, job.rows) * tokens / job.rows / speed
            verification = max(0.0, ended - self._embedded - again)
            start = START if self.builds else self._computing - self._began
            Pace.now(tokens_per_second=speed, start=start, verification=verification).save(job.fingerprint)
        if found := kept_estimate(job):
            estimated = found.seconds if whole and not self.builds else None
            print_note(how_far_off(found, tokens, estimated, ended - self._began))
