"""How long the steps of a run take: kept for the next estimate, and compared with the last one."""

from collections.abc import Callable
from time import monotonic

from contract.job import Job
from producer.console import print_note
from producer.estimate import how_far_off, kept_estimate
from producer.pace import START, Pace
from producer.progress import Progress

_LEAST = 2.0
"""Seconds of computing from which on a speed is measured."""


class Clock:
    """Takes the time of one run, which begins when this is made.

    Args:
        now: the time in seconds, from any start.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.builds = False
        """Whether the run builds its engine first. No estimate includes that: a dry run builds the engine itself."""
        self._now = now
        self._began = now()
        self._computing = self._embedded = 0.0
        self._progress: Progress | None = None

    def see(self, progress: Progress) -> None:
        """Note how far the run is. Its computing begins when a worker first has a batch."""
        view = progress.view
        if not self._computing and ((view and any(worker.job for worker in view.alive())) or progress.new.rows):
            self._computing = self._now()
        self._embedded, self._progress = self._now(), progress

    def verified(self, job: Job, sample: int | None) -> None:
        """Keep the pace of a run that has ended, and print how far off its estimate was.

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
