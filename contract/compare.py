"""How far an engine's vectors are from PyTorch's."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.words import count


@dataclass(frozen=True)
class Tolerance:
    """How far vectors of one precision may be from PyTorch's. Neither bound depends on the vectors' norms."""

    min_cosine: float
    """Of each vector."""
    max_relative_mse: float
    """Of all vectors together."""


TOLERANCES = {
    # Two vectors of norm 1 with cosine 0.99999 have a relative MSE of 2 * (1 - 0.99999) = 2e-5: one bound each way.
    "fp32": Tolerance(min_cosine=0.99999, max_relative_mse=2e-5),
    "fp16": Tolerance(min_cosine=0.9999, max_relative_mse=1e-4),
    # An eighth of FP16's digits: rounding errors are eight times as large, the bounds ten times, by the same rule.
    "bf16": Tolerance(min_cosine=0.999, max_relative_mse=2e-3),
}


@dataclass(frozen=True)
class Comparison:
    """Vectors against a reference. Only finite pairs enter the figures; ``non_finite`` counts the others."""

    vectors: int
    mse: float
    """The mean of the squared differences of all elements."""
    relative_mse: float
    """``mse`` divided by the mean square of the reference's elements: 1e-4 where every element is off by 1 %."""
    min_cosine: float
    """The lowest cosine between a vector and its reference."""
    max_difference: float
    """The largest absolute difference of two elements."""
    non_finite: int
    """Vectors with a NaN or an infinity in them."""

    def __str__(self) -> str:
        figures = f"lowest cosine {self.min_cosine:.7f}, MSE {self.mse:.1e}, relative MSE {self.relative_mse:.1e}"
        off = f", {self.non_finite:,} of {count(self.vectors, 'vector')} not finite"
        return figures + (off if self.non_finite else "")

    def within(self, tolerance: Tolerance) -> bool:
        return (
            self.vectors > 0
            and self.non_finite == 0
            and self.min_cosine >= tolerance.min_cosine
            and self.relative_mse <= tolerance.max_relative_mse
        )


def cosines(found: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """``[n]`` float64: the cosine of each row of ``found`` ``[n, hidden]`` with the same row of ``reference``."""
    a, b = found.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)


def compare(found: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> Comparison:
    """Compare two arrays of vectors.

    Args:
        found: ``[n, hidden]``.
        reference: ``[n, hidden]``, PyTorch FP32.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != reference.shape:
        raise ValueError(f"vectors of shape {found.shape} cannot be compared with a reference of {reference.shape}")
    finite = np.isfinite(found).all(axis=1)
    a, b = found[finite].astype(np.float64), reference[finite].astype(np.float64)
    if not len(a):
        return Comparison(len(found), np.nan, np.nan, np.nan, np.nan, int((~finite).sum()))
    mse = float(np.mean((a - b) ** 2))
    return Comparison(
        vectors=len(found),
        mse=mse,
        relative_mse=mse / float(np.mean(b**2)),
        min_cosine=float(cosines(a, b).min()),
        max_difference=float(np.abs(a - b).max()),
        non_finite=int((~finite).sum()),
    )
