"""How fast ``embedmill embed`` was on this machine with one engine: what the next estimate begins with."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from contract.settings import cache_folder
from producer.cached_record import CachedRecord

START, VERIFICATION = 5.0, 8.0
"""Seconds where no run was measured: on an idle machine of two cores."""


class Pace(CachedRecord):
    """What was measured of a run."""

    tokens_per_second: float
    """While vectors were computed."""
    start: float
    """Seconds from the command's begin to the first batch."""
    verification: float
    """Seconds of the verification besides computing the sample."""
    when: str
    """UTC, ISO 8601."""

    @classmethod
    def now(cls, *, tokens_per_second: float, start: float, verification: float) -> "Pace":
        when = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(tokens_per_second=tokens_per_second, start=start, verification=verification, when=when)

    def save(self, fingerprint: str) -> None:
        """Keep it for this machine and the engine of this fingerprint."""
        self.write(_file(fingerprint))


def last_pace(fingerprint: str) -> Pace | None:
    """Of the last run of an engine on this machine; None where there was none."""
    return Pace.read(_file(fingerprint))


def _file(fingerprint: str) -> Path:
    return cache_folder() / "paces" / f"{platform.node()}-{len(os.sched_getaffinity(0))}-{fingerprint}.json"
