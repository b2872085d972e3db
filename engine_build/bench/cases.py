"""The batches that every system computes: random, and the same in every Python."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.plan import BatchShape
from contract.tokens import TokenRows
from engine_build.vocabulary import vocabulary_size

INPUT_SETS = 4
"""Batches that are computed in turn, so that no run finds the last one's data in a cache."""


class Inputs(NamedTuple):
    """One batch's arrays in the order of ``contract.engine.INPUTS``, each int32 ``[rows, length]``."""

    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Timed:
    """What one system did with one shape."""

    milliseconds: list[float]
    """Of each run."""
    vectors: npt.NDArray[np.float32]
    """float32 ``[n, hidden]``: of the first of the input sets, at token level those of the real tokens."""


def inputs(spec: EngineSpec, shape: BatchShape) -> list[Inputs]:
    """Seeded random batches.

    The last row of several is one token short, so that no system can leave the mask out.

    Returns:
        ``INPUT_SETS`` batches.
    """
    vocabulary = vocabulary_size(spec)
    random = np.random.default_rng([shape.rows, shape.length])
    batches = []
    for _ in range(INPUT_SETS):
        # Not the padding id, by which some models count positions.
        ids = random.integers(0, vocabulary - 1, shape, dtype=np.int32)
        ids += ids >= spec.pad_id
        mask = np.ones(shape, np.int32)
        if shape.rows > 1:
            mask[-1, -1], ids[-1, -1] = 0, spec.pad_id
        batches.append(Inputs(ids, mask, np.zeros(shape, np.int32)))
    return batches


def as_batch(spec: EngineSpec, batch: Inputs) -> Batch:
    """The batch as a worker has it."""
    tokens = TokenRows.of_padded(batch.input_ids, batch.attention_mask)
    return Batch("bench", 0, spec.fingerprint, np.arange(len(tokens)), tokens, tokens.lengths)


def without_padding(spec: EngineSpec, batch: Inputs, output: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The output's vectors, ``[n, hidden]``, without those of padding tokens."""
    return output[batch.attention_mask.astype(bool)] if spec.per_token else output


def runs_of(shape: BatchShape, asked: int | None) -> int:
    """How often a shape is timed: one row 1,000 times, else 100 times, unless the user asks for another number."""
    return asked or (1000 if shape.rows == 1 else 100)
