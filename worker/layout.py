"""How rows lie in a plan's inputs: padded to a rectangle, or packed end to end.

padded    rows × length       input_ids, attention_mask, token_type_ids
packed    one row of tokens   input_ids, token_type_ids, position_ids (each row's from 0), row_of_token,
                              cu_seqlens (where each row begins, and where the last ends), longest (of it, only its own
                              length counts: the longest row's)

Packed rows need no padding and no mask, but an attention that knows where rows end: TensorRT 8.6's and 10's plug-in.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import INPUTS, EngineSpec
from contract.plan import PACKED_INPUTS, PlanSpec, packed_rows
from worker.engine import Gathered
from worker.microbatch import Lengths, MicroBatch, cut_by_profiles, cut_packed

Shape = tuple[int, ...]
Pinned = dict[str, npt.NDArray[np.int32]]


class Layout(Protocol):
    """One of the two."""

    inputs: Sequence[str]
    """The plan's inputs, each int32."""

    def cut(self, lengths: Lengths) -> list[MicroBatch]:
        """Cut a batch for the plan's profiles; see ``worker.microbatch``."""
        ...

    def sizes(self) -> tuple[int, int]:
        """The most elements of an input, and the most vectors of an output."""
        ...

    def fill(self, batch: Batch, micro: MicroBatch, buffers: Pinned) -> Mapping[str, Shape]:
        """Write a micro-batch into the inputs' buffers, from each buffer's start.

        Returns:
            Each input's shape.
        """
        ...

    def vectors(self, micro: MicroBatch) -> int:
        """Vectors of the output, those of padding at its end left out."""
        ...

    def gather(self, micro: MicroBatch, found: npt.NDArray[np.float32], lengths: Lengths, into: Gathered) -> None:
        """Hand on an output, ``[vectors, hidden]``, row by row."""
        ...


class Padded:
    """Each row padded to the longest one's length."""

    inputs: Sequence[str] = INPUTS

    def __init__(self, spec: EngineSpec, plan: PlanSpec) -> None:
        self._per_token = spec.pooling == "tokens"
        self._profiles = plan.profiles

    def cut(self, lengths: Lengths) -> list[MicroBatch]:
        return cut_by_profiles(lengths, self._profiles)

    def sizes(self) -> tuple[int, int]:
        tokens = max(profile.rows * profile.length for profile in self._profiles)
        return tokens, tokens if self._per_token else max(profile.rows for profile in self._profiles)

    def fill(self, batch: Batch, micro: MicroBatch, buffers: Pinned) -> Mapping[str, Shape]:
        shape = micro.tokens // micro.length, micro.length
        for name in INPUTS:
            matrix = buffers[name][: micro.tokens].reshape(shape)
            matrix[: len(micro.rows)] = getattr(batch, name)[micro.rows, : micro.length]
            # A row of padding is a copy of the first: one without a real token would be divided by zero.
            matrix[len(micro.rows) :] = matrix[0]
        return dict.fromkeys(INPUTS, shape)

    def vectors(self, micro: MicroBatch) -> int:
        return len(micro.rows) * (micro.length if self._per_token else 1)

    def gather(self, micro: MicroBatch, found: npt.NDArray[np.float32], lengths: Lengths, into: Gathered) -> None:
        into.put(micro.rows, found.reshape(-1, micro.length, found.shape[-1]) if self._per_token else found)


class Packed:
    """Rows end to end, up to a profile's number of tokens; what is left of them is filled with rows of padding."""

    inputs: Sequence[str] = PACKED_INPUTS

    def __init__(self, spec: EngineSpec, plan: PlanSpec) -> None:
        self._per_token = spec.pooling == "tokens"
        self._max_length, self._pad_id = spec.max_length, spec.pad_id
        self._profiles = plan.profiles

    def cut(self, lengths: Lengths) -> list[MicroBatch]:
        return cut_packed(lengths, self._profiles)

    def sizes(self) -> tuple[int, int]:
        tokens = max(profile.length for profile in self._profiles)
        rows = max(packed_rows(profile, self._max_length) for profile in self._profiles)
        return max(tokens, rows + 1), tokens if self._per_token else rows

    def fill(self, batch: Batch, micro: MicroBatch, buffers: Pinned) -> Mapping[str, Shape]:
        lengths = batch.lengths[micro.rows]
        real, rows = int(lengths.sum()), packed_rows(self._profiles[micro.profile], self._max_length)
        spare = rows - len(lengths)
        # Padding is rows too: what no row owns is never computed, and whatever was in its memory would spread. They are
        # few and long, as the plug-in works row by row.
        padding = micro.tokens - real
        each = max(-(-padding // spare), int(lengths.max()))
        filler = np.minimum(each, np.maximum(0, padding - each * np.arange(spare)))
        every = np.concatenate([lengths, filler])
        tokens = np.arange(batch.input_ids.shape[1]) < lengths[:, None]
        for name in ("input_ids", "token_type_ids"):
            buffers[name][:real] = getattr(batch, name)[micro.rows][tokens]
            buffers[name][real : micro.tokens] = self._pad_id if name == "input_ids" else 0
        starts = np.concatenate([[0], np.cumsum(every)])
        owners = np.repeat(np.arange(rows), every)
        buffers["position_ids"][: micro.tokens] = np.arange(micro.tokens) - starts[owners]
        buffers["row_of_token"][: micro.tokens] = owners
        buffers["cu_seqlens"][: rows + 1] = starts
        longest = int(every.max())
        return {name: (micro.tokens,) for name in PACKED_INPUTS[:4]} | {
            "cu_seqlens": (rows + 1,),
            "longest": (longest,),
        }

    def vectors(self, micro: MicroBatch) -> int:
        return micro.tokens if self._per_token else len(micro.rows)

    def gather(self, micro: MicroBatch, found: npt.NDArray[np.float32], lengths: Lengths, into: Gathered) -> None:
        if self._per_token:
            ends = np.cumsum(np.asarray(lengths)[micro.rows])
            into.put(micro.rows, np.split(found[: ends[-1]], ends[:-1]))
        else:
            into.put(micro.rows, found)


def layout_of(spec: EngineSpec, plan: PlanSpec) -> Layout:
    """The plan's layout."""
    return Packed(spec, plan) if plan.packed else Padded(spec, plan)
