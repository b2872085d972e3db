"""Errors in the middle of a batch, and of the GPU itself, for the tests of each runtime on a GPU."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tests.conftest import JARGON

ROOT = JARGON.parent.parent


def failing_at(number: int, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, but its call of this number, counted from 1, raises ``ValueError: micro-batch NUMBER``."""
    calls = itertools.count(1)

    def call(*arguments: object) -> Any:
        if next(calls) == number:
            raise ValueError(f"micro-batch {number}")
        return method(*arguments)

    return call


def output_after_a_cuda_error(engine: str, module: str, opening: str) -> str:
    """What a process prints whose PyTorch is given token ids far outside of the vocabulary. It is a process of its own,
    because nothing on the GPU works in it afterwards.

    Args:
        engine: its name.
        module: of ``worker.runtime``, which computes it.
        opening: what of this module opens it, such as ``torch_gpu_engine(spec, 0)``.
    """
    code = f"""
import os
import numpy as np
from contract.batch import Batch
from contract.engines import load_engine
from contract.tokens import TokenRows
from worker.runtime import {module}
from worker.runtime.interface import EngineDead
spec = load_engine("{engine}")
lengths = np.full(4, spec.max_length, np.int32)
ids = np.full(lengths.sum(), 2**31 - 1, np.int32)
batch = Batch("job", 0, "", np.arange(4), TokenRows(ids, lengths), lengths)
opened = {module}.{opening}  # kept: it would be closed once nobody refers to it
engine = opened.__enter__()
try:
    engine.infer(batch)
except EngineDead as error:
    print("dead:", error, flush=True)
os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 7, done.stderr
    return done.stdout
