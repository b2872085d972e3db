"""How rows lie in a plan's inputs: padded to a rectangle, or packed end to end.

padded    rows × length       input_ids, attention_mask, token_type_ids
packed    one row of tokens   input_ids, token_type_ids, position_ids (each row's begin anew),
                              cu_seqlens (where each row begins, and where the last ends), longest (of it, only its own
                              length counts: the longest row's), for mean pooling row_of_token

Packed rows need no padding and no mask, but an attention that knows where rows end: that of TensorRT 8.6's and 10's
plug-in, or of PyTorch.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.graph import INPUTS, packed_inputs
from contract.plan import PackedProfile, PaddedProfile, PlanSpec
from worker.runtime.interface import Gathered
from worker.runtime.microbatch import Lengths, MicroBatch, cut_packed, cut_padded

TensorShape = tuple[int, ...]
Buffers = dict[str, npt.NDArray[np.int32]]
"""Each input's, flat."""


class Layout(Protocol):
    """One of the two."""

    @property
    def inputs(self) -> Sequence[str]:
        """The plan's inputs, each int32."""
        ...

    def cut(self, lengths: Lengths) -> list[MicroBatch]:
        """Cut a batch for the plan's profiles; see ``microbatch``."""
        ...

    def sizes(self) -> tuple[int, int]:
        """The most elements of an input, and the most vectors of an output."""
        ...

    def fill(self, batch: Batch, micro: MicroBatch, buffers: Buffers) -> Mapping[str, TensorShape]:
        """Write a micro-batch into the inputs' buffers, from each buffer's start.

        Returns:
            Each input's shape.
        """
        ...

    def vectors(self, micro: MicroBatch) -> int:
        """Vectors of the output, those of padding at its end left out."""
        ...

    def gather(self, micro: MicroBatch, output: npt.NDArray[np.float32], lengths: Lengths, into: Gathered) -> None:
        """Hand on an output, ``[vectors, hidden]``, row by row."""
        ...


class Padded:
    """Each row padded to the longest one's length."""

    inputs: Sequence[str] = INPUTS

    def __init__(self, spec: EngineSpec, profiles: Sequence[PaddedProfile]) -> None:
        self._per_token, self._pad_id, self._profiles = spec.per_token, spec.pad_id, profiles

    def cut(self, lengths: Lengths) -> list[MicroBatch]:
        return cut_padded(lengths, self._profiles)

    def sizes(self) -> tuple[int, int]:
        tokens = max(profile.max.tokens for profile in self._profiles)
        return tokens, tokens if self._per_token else max(profile.max.rows for profile in self._profiles)

    def fill(self, batch: Batch, micro: MicroBatch, buffers: Buffers) -> Mapping[str, TensorShape]:
        shape = micro.tokens // micro.length, micro.length
        for name, rows in batch.tokens.take(micro.rows).padded(micro.length, self._pad_id).items():
            matrix = buffers[name][: micro.tokens].reshape(shape)
            matrix[: len(micro.rows)] = rows
            # A row of padding is a copy of the first: one without a real token would be divided by zero.
            matrix[len(micro.rows) :] = matrix[0]
        return dict.fromkeys(INPUTS, shape)

    def vectors(self, micro: MicroBatch) -> int:
        return len(micro.rows) * (micro.length if self._per_token else 1)

    def gather(self, micro: MicroBatch, output: npt.NDArray[np.float32], lengths: Lengths, into: Gathered) -> None:
        into.put(micro.rows, output.reshape(-1, micro.length, output.shape[-1]) if self._per_token else output)


class Packed:
    """Rows end to end, up to a profile's number of tokens; what is left of them is filled with rows of padding.

    Args:
        spec: the engine.
        profiles: sizes of micro-batches, the largest of which takes any row.
        inputs: those that are filled; None for those of a plan.
    """

    def __init__(
        self, spec: EngineSpec, profiles: Sequence[PackedProfile], inputs: Sequence[str] | None = None
    ) -> None:
        self.inputs = inputs or packed_inputs(spec.pooling)
        self.profiles = profiles
        self._per_token = spec.per_token
        self._max_length, self._pad_id, self._position_pad_id = spec.max_length, spec.pad_id, spec.position_pad_id

    def cut(self, lengths: Lengths) -> list[MicroBatch]:
        return cut_packed(lengths, self.profiles)

    def sizes(self) -> tuple[int, int]:
        tokens = max(profile.tokens for profile in self.profiles)
        rows = max(profile.input_rows(self._max_length) for profile in self.profiles)
        return max(tokens, rows + 1), tokens if self._per_token else rows

    def fill(self, batch: Batch, micro: MicroBatch, buffers: Buffers) -> Mapping[str, TensorShape]:
        tokens, lengths = batch.tokens.take(micro.rows).ids, batch.lengths[micro.rows]
        buffers["input_ids"][: len(tokens)] = tokens
        buffers["input_ids"][len(tokens) : micro.tokens] = self._pad_id
        buffers["token_type_ids"][: micro.tokens] = 0
        rows = self.profiles[micro.profile].input_rows(self._max_length)
        every = with_padding(lengths, rows, micro.tokens)
        starts = np.concatenate([[0], np.cumsum(every)])
        row_of_token = np.repeat(np.arange(rows), every)
        buffers["position_ids"][: micro.tokens] = self._positions(
            buffers["input_ids"][: micro.tokens], starts[row_of_token]
        )
        if "row_of_token" in buffers:
            buffers["row_of_token"][: micro.tokens] = row_of_token
        buffers["cu_seqlens"][: rows + 1] = starts
        longest = {"longest": (int(every.max()),)}
        return {name: longest.get(name, (size,)) for name, size in self.sizes_of(micro.profile).items()}

    def sizes_of(self, profile: int) -> Mapping[str, int]:
        """Each input's elements in a profile's micro-batches; those of ``longest`` are at least as many."""
        tokens, rows = self.profiles[profile].tokens, self.profiles[profile].input_rows(self._max_length)
        return {name: rows + 1 if name == "cu_seqlens" else tokens for name in self.inputs}

    def _positions(self, ids: npt.NDArray[np.int32], row_start: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """``[tokens]``: each token's position.

        Args:
            ids: ``[tokens]``.
            row_start: ``[tokens]``, where each token's row begins.
        """
        padding = self._position_pad_id
        if padding is None:
            return np.arange(len(ids)) - row_start
        counted = np.concatenate([[0], np.cumsum(ids != padding)])
        return np.where(ids == padding, padding, padding + counted[1:] - counted[row_start])

    def vectors(self, micro: MicroBatch) -> int:
        return micro.tokens if self._per_token else len(micro.rows)

    def gather(self, micro: MicroBatch, output: npt.NDArray[np.float32], lengths: Lengths, into: Gathered) -> None:
        if self._per_token:
            ends = np.cumsum(np.asarray(lengths)[micro.rows])
            into.put(micro.rows, np.split(output[: ends[-1]], ends[:-1]))
        else:
            into.put(micro.rows, output)


def with_padding(lengths: npt.NDArray[np.int32], rows: int, tokens: int) -> npt.NDArray[np.integer]:
    """Add rows of padding, so that all rows together have a packed profile's tokens.

    A token that is of no row would never be computed, and what was in its memory would spread. The rows of padding are
    few and long, as the plug-in works row by row, but none is longer than the longest row, unless they are too few for
    that. Rows of 5 and 3 tokens in 8 rows of 24 tokens get 16 tokens of padding: 5, 5, 5, 1, 0 and 0.

    Args:
        lengths: ``[n]``, the real rows'.
        rows: of the plan's inputs, more than ``n``.
        tokens: theirs.

    Returns:
        ``[rows]``, each row's tokens, the real rows first.
    """
    spare, padding = rows - len(lengths), tokens - int(lengths.sum())
    each = max(-(-padding // spare), int(lengths.max()))
    return np.concatenate([lengths, np.minimum(each, np.maximum(0, padding - each * np.arange(spare)))])


def layout_of(spec: EngineSpec, plan: PlanSpec) -> Layout:
    """The plan's layout."""
    return Packed(spec, plan.packed_profiles) if plan.packed else Padded(spec, plan.padded_profiles)
