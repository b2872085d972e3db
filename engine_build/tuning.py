"""Which runtime computes an engine fastest on this machine, and how exactly."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np

from contract.batch import Batch
from contract.compare import TOLERANCES, compare
from contract.engine import EngineSpec
from contract.tokens import TokenRows
from contract.tuned import Measurement
from engine_build.vocabulary import vocabulary_size
from worker.runtime.choose import RUNTIMES, Runtime, open_fp32_engine
from worker.runtime.gpus import gpu_count, gpu_model
from worker.runtime.interface import Engine

_LENGTHS = {"short": (8, 64), "mixed": (48, 512), "long": (512, 512)}
"""Of each kind of rows the fewest and the most tokens, special tokens included. Means are 36, 280 and 512."""
_GPU_TOKENS, _CPU_TOKENS = 300_000, 6_000
"""Tokens of a batch, about."""
_COMPARED = 32
"""Rows of each batch that are compared with FP32."""


def batches(spec: EngineSpec, tokens: int) -> dict[str, Batch]:
    """Seeded random batches, one of each kind of rows, about so many tokens each."""
    return {kind: _batch(spec, kind, tokens) for kind in _LENGTHS}


def _batch(spec: EngineSpec, kind: str, tokens: int) -> Batch:
    shortest, most = (min(length, spec.max_length) for length in _LENGTHS[kind])
    random = np.random.default_rng([shortest, most])
    lengths = random.integers(shortest, most + 1, max(_COMPARED, 2 * tokens // (shortest + most)), dtype=np.int32)
    ids = random.integers(0, vocabulary_size(spec) - 1, lengths.sum(), dtype=np.int32)
    ids += ids >= spec.pad_id  # not the padding id, by which some models count positions
    return Batch(kind, 0, spec.fingerprint, np.arange(len(lengths)), TokenRows(ids, lengths), lengths)


def runtimes(spec: EngineSpec) -> list[tuple[Runtime, str]]:
    """Every runtime, and why it cannot compute the engine here; empty if it can. On a machine with a GPU those that
    compute on the CPU are left out: they are slower by far."""
    found = [(one, one.machine_lacks() or one.engine_lacks(spec)) for one in RUNTIMES]
    return (
        [(one, why) for one, why in found if one.uses_gpu]
        if gpu_count()
        else [(one, why) for one, why in found if not one.uses_gpu]
    )


def measure(
    spec: EngineSpec, chosen: list[Runtime], *, gpu: int, seconds: float, step: Callable[[str], None]
) -> Iterator[Measurement]:
    """Measure one runtime after the other.

    Args:
        spec: the engine.
        chosen: those that can compute it here.
        gpu: the number of the GPU.
        seconds: that each kind of rows is computed for, at least.
        step: takes the name of the step that begins.

    Raises:
        UserError: the engine cannot be loaded.
        EngineDead: the GPU failed.
    """
    on_gpu = any(one.uses_gpu for one in chosen)
    threads = len(os.sched_getaffinity(0))
    inputs = batches(spec, _GPU_TOKENS if on_gpu else _CPU_TOKENS)
    some = {kind: batch.take(np.arange(_COMPARED)) for kind, batch in inputs.items()}
    step("computing the vectors to compare with")
    with open_fp32_engine(spec, threads) as fp32:
        expected = np.concatenate([fp32.infer(batch).vectors for batch in some.values()])
    for runtime in chosen:
        step(f"loading {runtime.name}")
        with runtime.load()(spec, threads, gpu) as engine:
            found = np.concatenate([engine.infer(batch).vectors for batch in some.values()])
            speeds = {}
            for kind, batch in inputs.items():
                step(f"timing {runtime.name}, rows: {kind}")
                speeds[kind] = _speed(engine, batch, seconds)
            comparison = compare(found, expected)
            yield Measurement(
                gpu=gpu_model() if runtime.uses_gpu else "",
                runtime=runtime.name,
                version=engine.runtime,
                tokens_per_second=speeds,
                min_cosine=comparison.min_cosine,
                within_tolerance=comparison.within(TOLERANCES[engine.precision]),
                created=datetime.now(UTC).isoformat(timespec="microseconds"),
            )


def _speed(engine: Engine, batch: Batch, seconds: float) -> float:
    """Tokens a second, padding not counted; the batch is computed once before the clock runs."""
    engine.infer(batch)
    tokens, rounds, began = int(batch.lengths.sum()), 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not rounds:
        engine.infer(batch)
        rounds += 1
    return tokens * rounds / spent
