"""Where a batch's time goes in a worker."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass
class Stages:
    """Seconds of one batch, by what they are spent on."""

    fetch: float = 0.0
    """Redis: the job's record and the batch's bytes, and their hash."""
    decode: float = 0.0
    """Bytes to arrays, and whether it is the batch that was asked for."""
    compute: float = 0.0
    """Arrays to vectors, on whatever device, the way there and back included."""
    write: float = 0.0
    """Vectors to a committed shard."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the ``with`` block's seconds to a stage, a field's name."""
        began = time.monotonic()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.monotonic() - began)

    def __str__(self) -> str:
        """Such as ``fetch 0.002, decode 0.004, compute 0.161, write 0.024``."""
        return ", ".join(f"{field.name} {getattr(self, field.name):.3f}" for field in fields(self))
