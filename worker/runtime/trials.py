"""Batches of random tokens on which layers are compared before and after they are compiled, and how long they take."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.tokens import TokenRows
from worker.runtime.microbatch import ALIGNMENT


def seconds(compute: Callable[[], object]) -> float:
    """That a call takes, the shortest of three after a first one."""
    took = []
    for _ in range(4):
        began = time.perf_counter()
        compute()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def trials(spec: EngineSpec, vocabulary: int) -> list[Batch]:
    """A batch for each kind of micro-batch for which ``torch.compile`` makes code of its own: of several rows or one,
    with padding and without. Their tokens are random.

    Args:
        spec: the engine.
        vocabulary: token ids that there are.
    """
    longest = min(3 * ALIGNMENT, spec.max_length)
    rows = ([longest] * 5, [longest, *[max(1, longest - 3)] * 4], [longest], [max(1, longest - 3)])
    return [_random(spec, vocabulary, np.array(one, np.int32)) for one in rows]


def usual(spec: EngineSpec, vocabulary: int, tokens: int) -> Batch:
    """A batch of about so many random tokens, in rows of all lengths up to 512. Arguments as ``trials``."""
    longest = min(512, spec.max_length)
    lengths = np.random.default_rng(0).integers(1, longest + 1, max(1, 2 * tokens // (longest + 1)), np.int32)
    return _random(spec, vocabulary, lengths)


def _random(spec: EngineSpec, vocabulary: int, lengths: npt.NDArray[np.int32]) -> Batch:
    tokens = TokenRows(np.random.default_rng(0).integers(0, vocabulary, lengths.sum(), np.int32), lengths)
    return Batch("warm-up", 0, spec.fingerprint, np.arange(len(lengths)), tokens, lengths)
