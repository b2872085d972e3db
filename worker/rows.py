"""From the vectors that an engine computed to those that a shard holds: windows to rows, rows to the job's form."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.form import VectorForm
from contract.vectors import RowVectors
from contract.words import count


@dataclass(frozen=True, eq=False)
class EmbeddedBatch:
    """A batch's vectors, and which of its rows have none."""

    vectors: RowVectors
    """Of the rows that have a text and no error, in row order."""
    errors: Mapping[int, str]
    """Index of a row in the batch → why it has no vector."""
    recomputed: int
    """Rows that were computed again in FP32."""
    computed_tokens: int


def pool_windows(batch: Batch, found: EmbeddedBatch, *, normalize: bool) -> tuple[Batch, EmbeddedBatch]:
    """One vector for each text: the mean of its windows' vectors, each of which counts by its tokens.

    Args:
        batch: with a row for each window.
        found: the windows' vectors. A text of which any window has an error has none.
        normalize: bring the mean to Euclidean norm 1, as the engine does with a window's vector.

    Returns:
        The batch with a row for each text, and the texts' vectors.
    """
    owners = batch.owners
    texts = batch.take(np.flatnonzero(np.diff(owners, prepend=-1)))
    if len(texts) == len(batch):
        return batch, found
    errors = {int(owners[window]): error for window, error in found.errors.items()}
    has_vector = batch.lengths > 0
    has_vector[list(found.errors)] = False
    counted = has_vector & ~np.isin(owners, list(errors))  # of the texts without any error
    windows = found.vectors.values[counted[has_vector]]
    vectors, owner, weight = windows, owners[counted], batch.lengths[counted]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    if len(starts):
        sums = np.add.reduceat(vectors * weight[:, None].astype(np.float32), starts, axis=0)
        vectors = sums / np.add.reduceat(weight, starts)[:, None].astype(np.float32)
        # A text of one window keeps its vector to the bit.
        several = np.add.reduceat(np.ones_like(weight), starts) > 1
        vectors[~several] = windows[starts[~several]]
        if normalize:
            vectors[several] /= np.linalg.norm(vectors[several], axis=1, keepdims=True)
    return texts, EmbeddedBatch(RowVectors.pooled(vectors), errors, found.recomputed, found.computed_tokens)


def into_form(batch: Batch, found: EmbeddedBatch, form: VectorForm, spec: EngineSpec) -> EmbeddedBatch:
    """The rows' vectors in the form in which the job keeps them.

    A vector that has no such form, being all zero in its first dimensions or too large for float16, is an error.
    """
    rows = np.array([row for row in np.flatnonzero(batch.lengths) if row not in found.errors], np.intp)
    shortened = replace(found.vectors, values=form.shortened(found.vectors.values, normalize=spec.normalize))
    quantized = replace(shortened, values=form.quantized(shortened.values))
    if spec.layout == "sparse":  # what is too small for float16 is not kept as a zero
        quantized = quantized.without(quantized.values[:, 0] == 0)
    bad = (quantized if form.dtype == "float16" else shortened).unfit()
    if not len(bad):
        return replace(found, vectors=quantized)
    what = f"{count(form.elements(spec.hidden), 'dimension')} as {form.dtype}"
    errors = {**found.errors, **{int(row): f"its vector is not finite or zero in {what}" for row in rows[bad]}}
    return replace(found, vectors=quantized.take(~np.isin(np.arange(len(quantized)), bad)), errors=errors)
