"""What a fault is, and how often it comes."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.chaos.place import Change
from bench.chaos.rig import ONE_SERVER, MakeServers, Rig

_LOOK = 0.05
"""Seconds until it is looked again for something to hurt. A whole pause instead could outlast a job of few batches."""

Once = Callable[[Rig, random.Random], bool]
"""Hurts a running rig once and returns when it has; false where there was nothing to hurt just now."""


@dataclass(frozen=True)
class Fault:
    """A fault and what it needs."""

    name: str
    once: Once | None = None
    """None where it lies in the rows or in the environment."""
    times: int = 1
    pause: tuple[float, float] = (0.0, 0.0)
    """Seconds before each, at least and at most."""
    after: int = 0
    """Shards that must be there before the first."""
    changes: tuple[Change, ...] = ()
    """What is to differ from this machine as it is."""
    servers: MakeServers = ONE_SERVER
    producers: int = 1
    env: dict[str, str] = field(default_factory=dict)
    failed: tuple[int, ...] = ()
    """Rows that must end with an error, and no others."""
    seconds: float = 0.15
    """How long the engine takes for a batch."""

    def inject(self, rig: Rig, dice: random.Random) -> None:
        """Hurt the rig, until all faults were injected or the job is at its end."""
        if self.once is None:
            return
        rig.wait_for(lambda: len(rig.commits) >= self.after or not rig.running)
        for _ in range(self.times):
            time.sleep(dice.uniform(*self.pause))
            while rig.running and not self.once(rig, dice):
                time.sleep(_LOOK)
            if not rig.running:
                return
