"""What every engine offers: a batch in, its vectors out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.vectors import RowVectors

LONG_ROW = 1024
"""Tokens. ONNX Runtime's attention holds two copies of every token's score with every other, for each head: with 12 of
them 0.1 GB for a row of 1,024 tokens, 1.6 GB for one of 4,096 (measured). PyTorch's takes memory for the tokens
alone."""


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

    rows: RowVectors
    """float32, of the batch's rows that have a text, in its order. The caller's own."""
    computed_tokens: int
    """Tokens that were computed, padding included."""

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """All of the rows' vectors, ``[m, hidden]``."""
        return self.rows.values


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
        """``fp32``, ``fp16`` or ``bf16``."""
        ...

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """The batch's vectors. After an exception other than ``EngineDead`` the engine can be used again.

        Raises:
            EngineDead: the GPU failed; nothing more can be computed in this process.
        """
        ...


class Gathered:
    """Collects micro-batches' outputs as an ``Inference``'s rows.

    Args:
        spec: the engine's.
        lengths: ``[n]``, the batch's.
        done: takes how many more rows are there.
    """

    def __init__(self, spec: EngineSpec, lengths: npt.NDArray[np.integer], done: Done = unseen) -> None:
        self._done = done
        self._per_token, self._dropped = spec.per_token, spec.without_vector
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

    def of(self, batch: Batch) -> RowVectors:
        """What was put in, of all rows of the batch, without the tokens that have no vector."""
        if not self._per_token:
            return RowVectors.pooled(self.vectors)
        found = RowVectors.of_tokens(self.vectors, self._lengths[self._lengths > 0])
        if not self._dropped:
            return found
        return found.without(np.isin(batch.tokens.ids, self._dropped))


class GatheredSparse:
    """As ``Gathered``, of vectors that are mostly zeros: no more of them is in memory than a micro-batch's."""

    def __init__(self, done: Done = unseen) -> None:
        self._done = done
        self._parts: list[RowVectors] = []
        self._order: list[npt.NDArray[np.intp]] = []

    def put(self, rows: npt.NDArray[np.intp], output: npt.NDArray[np.float32]) -> None:
        """Take over the vectors of these rows of the batch, ``[n, hidden]``."""
        self._parts.append(RowVectors.sparse(output))
        self._order.append(rows)
        self._done(len(rows))

    def of(self, batch: Batch) -> RowVectors:
        """See ``Gathered.of``."""
        if not self._parts:
            return RowVectors.sparse(np.empty((0, 0), np.float32))
        rows = np.concatenate(self._order)
        return RowVectors.joined(self._parts, np.argsort(np.argsort(rows)))
