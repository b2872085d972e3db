"""How far one job is from another one of the same rows: cosines, neighbours, and the rows that differ most."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from contract.errors import UserError
from contract.words import count
from verify.comparison import excerpt
from verify.difference import Compared, Cosines, Difference, DifferentRow, Neighbour
from verify.neighbours import Neighbours, cosines_to, nearest
from verify.two_jobs import Side, in_step, same_texts

NEAREST = 10
"""Neighbours of a row that are compared."""

_NOISE = 1e-6
"""Cosines that differ by at most this much are equal: a row that is computed in another batch differs as much."""
_LISTED = 10
"""Rows that differ most."""
_TEXT = 200
"""Characters of a row's text that are kept."""
_Z = 1.96
"""A normal distribution's 95 % lie within so many standard errors."""
_FLOOR = 1e-8
"""The least distance that is told from none: float32 has no finer ones near 1."""


class _Scan:
    """One reading of both jobs: which rows have vectors, the cosines, and the sampled rows' vectors."""

    def __init__(self, left: Side, right: Side, wanted: npt.NDArray[np.int64]) -> None:
        rows, same = left.job.rows, left.elements == right.elements
        self.there = np.zeros((2, rows), bool)
        self.cosines = np.full(rows, np.nan) if same else None
        self.vectors = [np.zeros((len(wanted), side.elements), np.float32) for side in (left, right)]
        for chunks in in_step(left, right):
            span = chunks[0].rows
            inside = (wanted >= span.start) & (wanted < span.stop)
            for number, chunk in enumerate(chunks):
                self.there[number, span.start : span.stop] = chunk.there
                self.vectors[number][inside] = chunk.vectors[wanted[inside] - span.start]
            if self.cosines is not None:
                self.cosines[span.start : span.stop] = _cosines(chunks[0].vectors, chunks[1].vectors)
        self.both: npt.NDArray[np.bool_] = self.there[0] & self.there[1]


def _cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each pair of rows; NaN where one is zero."""
    first, second = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("ij,ij->i", first, second)
    return np.divide(products, norms, out=np.full(len(norms), np.nan), where=norms > 0)


def compare_jobs(left: Side, right: Side, *, sample: int, seed: int, least: float) -> Difference:
    """Compare two jobs.

    Args:
        left: the first job.
        right: the second one.
        sample: rows whose neighbours are searched for.
        seed: of the sample.
        least: overlap that is asked for, 0 to 1.

    Raises:
        UserError: they are not of the same rows, or too few rows have vectors in both.
    """
    rows = left.job.rows
    wanted = (
        np.sort(np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False)) if rows else np.empty(0)
    )
    wanted = wanted.astype(np.int64)
    texts = same_texts(left.job, right.job, wanted.tolist())
    scan = _Scan(left, right, wanted)
    if scan.both.sum() <= NEAREST:
        raise UserError(
            f"{count(int(scan.both.sum()), 'row')} of {left.job.id} and {right.job.id} have a vector in both",
            f"more than {NEAREST} are needed: each row's {NEAREST} nearest ones are compared",
        )
    with_both = scan.both[wanted]
    wanted, vectors = wanted[with_both], [one[with_both] for one in scan.vectors]
    nearby = [
        nearest(side, wanted.tolist(), mine, scan.both, NEAREST)
        for side, mine in zip((left, right), vectors, strict=True)
    ]
    kept, first_kept = _kept((left, right), vectors, nearby)
    shares = kept / NEAREST
    whole = len(wanted) == scan.both.sum()
    return Difference(
        left=_described(left),
        right=_described(right),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=rows,
        compared=int(scan.both.sum()),
        only_left=int((scan.there[0] & ~scan.there[1]).sum()),
        only_right=int((scan.there[1] & ~scan.there[0]).sum()),
        sample=len(wanted),
        seed=seed,
        neighbours=NEAREST,
        overlap=float(shares.mean()),
        overlap_error=0.0 if whole else float(_Z * shares.std(ddof=1) / np.sqrt(len(shares))),
        kept=tuple(np.bincount(kept, minlength=NEAREST + 1).tolist()),
        first_kept=float(first_kept.mean()),
        cosines=None if scan.cosines is None else _summed(scan.cosines[scan.both]),
        least=least,
        worst=_worst(left, wanted, kept, [one.rows for one in nearby], scan.cosines, texts),
    )


def _kept(
    sides: Sequence[Side], vectors: Sequence[npt.NDArray[np.float32]], found: Sequence[Neighbours]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """How many of its neighbours each row keeps, and whether it keeps the nearest.

    A neighbour that the other job lacks counts as kept if the other job could have it as well: if its cosine there is
    that of the other's last neighbour, up to ``_NOISE``. Both jobs must have such ties: the smaller number counts.

    Args:
        sides: the two jobs.
        vectors: of each, the rows' ``[n, elements]``.
        found: of each, the rows' neighbours.
    """
    same = [(mine.rows[:, :, None] == other.rows[:, None, :]).any(2) for mine, other in (found, found[::-1])]
    differ = np.flatnonzero((found[0].rows[:, 0] != found[1].rows[:, 0]) | ~same[0].all(1))
    reach, first = np.zeros((2, len(differ)), np.int64), np.ones((2, len(differ)), bool)
    if len(differ):
        for number, other in ((0, 1), (1, 0)):  # of one job's neighbours, those that the other's could be as well
            mine, theirs = found[number].rows[differ], found[other].cosines[differ]
            cosines = cosines_to(sides[other], vectors[other][differ], mine)
            reach[number] = ((cosines >= theirs[:, -1:] - _NOISE) & ~same[number][differ]).sum(1)
            first[number] = cosines[:, 0] >= theirs[:, 0] - _NOISE
    kept, first_kept = same[0].sum(1), np.ones(len(same[0]), bool)
    kept[differ] += reach.min(0)
    first_kept[differ] = first.all(0)
    return kept, first_kept


def _described(side: Side) -> Compared:
    job, spec = side.job, side.spec
    revision = f" at {spec.revision[:12]}" if spec.revision else ""
    return Compared(
        job=job.id,
        folder=str(job.folder),
        engine=job.engine,
        model=f"{spec.model}{revision}",
        fingerprint=job.fingerprint,
        form=str(job.form),
        elements=side.elements,
        vector_bytes=job.form.width(side.elements) * (job.form.element.bit_width // 8),
        bytes=job.bytes(),
    )


def _summed(cosines: npt.NDArray[np.float64]) -> Cosines:
    distances = np.maximum(1 - cosines, _FLOOR)
    low, high = np.floor(np.log10(distances.min())), np.ceil(np.log10(distances.max()) + 1e-9)
    edges = np.logspace(low, max(high, low + 1), 41)
    numbers, _ = np.histogram(distances, edges)
    return Cosines(
        lowest=float(cosines.min()),
        percent_1=float(np.quantile(cosines, 0.01)),
        median=float(np.median(cosines)),
        mean=float(cosines.mean()),
        histogram=tuple(zip(edges.tolist(), [*numbers.tolist(), 0], strict=True)),
    )


def _worst(
    left: Side,
    rows: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
    found: list[npt.NDArray[np.int64]],
    cosines: npt.NDArray[np.float64] | None,
    texts: dict[int, str],
) -> tuple[DifferentRow, ...]:
    keys = cosines[rows] if cosines is not None else np.zeros(len(rows))
    chosen = np.lexsort((rows, keys, kept))[:_LISTED]
    pairs = {index: [_first_not_in(found[one][index], found[1 - one][index]) for one in (0, 1)] for index in chosen}
    more = sorted({row for pair in pairs.values() for row in pair if row is not None} - texts.keys())
    texts = texts | same_texts(left.job, left.job, more)

    def neighbour(row: int | None) -> Neighbour | None:
        return None if row is None else Neighbour(row=row, text=excerpt(texts[row], _TEXT))

    return tuple(
        DifferentRow(
            row=int(rows[index]),
            text=excerpt(texts[int(rows[index])], _TEXT),
            kept=int(kept[index]),
            cosine=None if cosines is None else float(cosines[rows[index]]),
            lost=neighbour(pairs[index][0]),
            gained=neighbour(pairs[index][1]),
        )
        for index in chosen
        if kept[index] < NEAREST
    )


def _first_not_in(mine: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> int | None:
    return next((int(row) for row in mine if row not in others), None)
