"""What every engine offers: a batch in, its vectors out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec

LONG_ROW = 1024
"""Tokens. ONNX Runtime's attention holds two copies of every token's score with every other, for each head: with 12 of
them 0.1 GB for a row of 1,024 tokens, 6.6 GB for one of 8,192. PyTorch's needs memory for the tokens alone."""


class EngineDead(BaseException):
    """The engine's CUDA context is lost, and with it everything that this process has on the GPU: it must end.

    No ``Exception``: nothing that this process could still do would help.
    """


Done = Callable[[int], None]
"""Takes how many more rows of a batch are computed. It is called from any thread, and must be fast."""


def unseen(rows: int) -> None:
    """Where nobody wants to know."""


class Inference(NamedTuple):
    """What an engine made of a batch."""

    vectors: npt.NDArray[np.float32]
    """float32, in the batch's row order, rows without a text left out: ``[texts, hidden]``; of an engine with a vector
    for each token ``[sum(batch.lengths), hidden]``, the real tokens of one row after the other's. The caller's own."""
    computed_tokens: int
    """Tokens that were computed, padding included."""


class Engine(Protocol):
    """A loaded engine. The context manager that yields it loads it and frees it: there is none that is not loaded."""

    @property
    def spec(self) -> EngineSpec:
        """What it computes."""
        ...

    @property
    def runtime(self) -> str:
        """Such as ``onnxruntime 1.32.0``."""
        ...

    @property
    def precision(self) -> str:
        """``fp32`` or ``fp16``."""
        ...

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """The batch's vectors. After an exception other than ``EngineDead`` the engine can be used again.

        Raises:
            EngineDead: the GPU failed; nothing more can be computed in this process.
        """
        ...


class Gathered:
    """Collects micro-batches' outputs as an ``Inference``'s vectors.

    Args:
        spec: the engine's.
        lengths: ``[n]``, the batch's.
        done: takes how many more rows are there.
    """

    def __init__(self, spec: EngineSpec, lengths: npt.NDArray[np.integer], done: Done = unseen) -> None:
        self._done = done
        self._per_token = spec.per_token
        self._lengths = lengths
        # Where each row's vectors begin in the result: one each, or one for each of its tokens.
        counts = lengths if self._per_token else np.minimum(lengths, 1)
        self._first = np.cumsum(counts) - counts
        self.vectors = np.empty((int(counts.sum()), spec.hidden), np.float32)

    def put(
        self, rows: npt.NDArray[np.intp], output: npt.NDArray[np.float32] | Sequence[npt.NDArray[np.float32]]
    ) -> None:
        """Take over the vectors of these rows of the batch.

        Args:
            rows: ``[n]``, indices.
            output: ``[n, hidden]``; at token level each row's own array, ``[length, hidden]``, padding at its end
                allowed.
        """
        if self._per_token:
            for row, tokens in zip(rows, output, strict=True):
                self.vectors[self._first[row] : self._first[row] + self._lengths[row]] = tokens[: self._lengths[row]]
        else:
            self.vectors[self._first[rows]] = output
        self._done(len(rows))
