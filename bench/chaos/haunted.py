"""The worker's own Celery app with an engine that is slow, counts its work, and fails on chosen rows.

``celery -A bench.chaos.haunted worker``. Everything but the engine is the product's. The variables, all optional:

``CHAOS_SECONDS``
    how long the engine takes longer for a batch
``CHAOS_WORK``
    file to which each inference adds a line with its number of rows
``CHAOS_RAISE``, ``CHAOS_KILL``, ``CHAOS_NAN``
    row on which the engine raises, kills its process, or gives NaN
``CHAOS_DEAD``
    file that the engine removes, if it is there, before it says that its GPU is lost
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import numpy as np

# First: it prepares the environment that the next ones are imported in.
# isort: split
from worker import app

# isort: split

import worker.embed
from contract.batch import Batch
from contract.engine import EngineSpec
from worker.runtime.interface import Done, Engine, EngineDead, Inference, unseen
from worker.runtime.onnx import onnx_engine

__all__ = ["app"]


class HauntedEngine:
    """The real engine, and what befalls it."""

    def __init__(self, engine: Engine) -> None:
        self.spec, self.runtime, self.precision = engine.spec, engine.runtime, engine.precision
        self._engine = engine

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        if "CHAOS_WORK" in os.environ:
            with open(os.environ["CHAOS_WORK"], "a", encoding="utf-8") as file:
                file.write(f"{len(batch)}\n")
        time.sleep(float(os.environ.get("CHAOS_SECONDS", "0")))
        rows = set(batch.row_id.tolist())
        if _row("CHAOS_KILL") in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        if "CHAOS_DEAD" in os.environ:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.environ["CHAOS_DEAD"])
                raise EngineDead("GPU 0 failed: an illegal memory access was encountered")
        if _row("CHAOS_RAISE") in rows:
            raise IndexError("no embedding for token 31415")
        found = self._engine.infer(batch, done)
        texts = batch.row_id[batch.n_tokens > 0]
        found.vectors[texts == _row("CHAOS_NAN")] = np.nan
        return found


def _row(variable: str) -> int:
    return int(os.environ.get(variable, "-1"))


@contextlib.contextmanager
def _open_haunted(spec: EngineSpec, threads: int, gpu: int) -> Iterator[HauntedEngine]:
    with onnx_engine(spec, threads) as engine:
        yield HauntedEngine(engine)


setattr(worker.embed, "open_engine", _open_haunted)  # noqa: B010 - the module does not export what is replaced
