"""The form in which a job keeps its vectors: how many elements of which type.

The quantizations are those of ``sentence_transformers.quantize_embeddings``, element for element.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from contract.words import count

Dtype = Literal["float32", "float16", "int8", "binary"]

Vectors = npt.NDArray[np.floating]

Quantized = npt.NDArray[Any]
"""Vectors as a shard holds them: float32, float16 or int8."""


class VectorForm(BaseModel):
    """How a vector that an engine computed is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Dtype = "float32"
    """``int8``: 256 equal steps between the ``ranges`` of each element. ``binary``: one bit for each element, 1 for a
    positive one, eight to an int8, which is the byte less 128."""
    dimensions: int | None = Field(default=None, ge=1)
    """Only this many elements from a vector's start (Matryoshka models); None for all."""
    ranges: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """For ``int8``: the lowest and the highest value of each element. What lies outside becomes the nearest of them."""

    @model_validator(mode="after")
    def _has_its_ranges(self) -> "VectorForm":
        if (self.ranges is not None) != (self.dtype == "int8"):
            raise ValueError("int8 has ranges, and nothing else has")
        if self.ranges and len(self.ranges[0]) != len(self.ranges[1]):
            raise ValueError("expected as many lowest as highest values")
        return self

    def __str__(self) -> str:
        """Such as ``int8, the first 256 dimensions``."""
        return self.dtype + (f", the first {count(self.dimensions, 'dimension')}" if self.dimensions else "")

    @property
    def element(self) -> pa.DataType:
        """The Arrow type of an element in a shard."""
        return {"float32": pa.float32(), "float16": pa.float16()}.get(self.dtype, pa.int8())

    def elements(self, hidden: int) -> int:
        """How many elements of a vector of so many are kept."""
        return self.dimensions or hidden

    def width(self, elements: int) -> int:
        """How many values a shard has for a vector of so many elements."""
        return -(-elements // 8) if self.dtype == "binary" else elements

    def shortened(self, vectors: npt.NDArray[np.float32], *, normalize: bool) -> npt.NDArray[np.float32]:
        """The first ``dimensions`` elements, ``[n, dimensions]`` float32.

        Args:
            vectors: ``[n, hidden]``.
            normalize: bring what is left to Euclidean norm 1 again, as the engine does with the whole.
        """
        if self.dimensions is None:
            return vectors
        left = vectors[:, : self.dimensions]
        if normalize:
            left = left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), np.float32(1e-12))
        return np.ascontiguousarray(left)

    def quantized(self, vectors: npt.NDArray[np.float32]) -> Quantized:
        """Quantize ``[n, elements]`` float32. A value too large for float16 becomes an infinity."""
        if self.dtype == "binary":
            return (np.packbits(vectors > 0, axis=-1) - 128).astype(np.int8)
        if self.dtype == "int8":
            low, step = self._steps()
            return (np.clip(np.floor((vectors - low) / step), 0, 255) - 128).astype(np.int8)
        with np.errstate(over="ignore"):
            return vectors.astype(self.dtype)

    def dequantized(self, quantized: Quantized, elements: int) -> npt.NDArray[np.float32]:
        """Vectors to compute with, ``[n, elements]`` float32: of int8 the middle of each step, of binary 1 and -1.

        Args:
            quantized: ``[n, width(elements)]``.
            elements: of a vector.
        """
        if self.dtype == "binary":
            return self._bits(quantized, elements).astype(np.float32) * 2 - 1
        if self.dtype == "int8":
            low, step = self._steps()
            return (low + (quantized.astype(np.float32) + np.float32(128.5)) * step).astype(np.float32)
        return quantized.astype(np.float32)

    def nearest(self, quantized: Quantized, reference: npt.NDArray[np.float32]) -> Vectors:
        """The vectors nearest to a reference among all that quantize to these values, ``[n, elements]``.

        They are what the verifier compares, so that one tolerance serves every dtype. Say an int8 step covers 0.10 to
        0.12, and the reference's element is 0.1101: if the shard holds this step, the nearest vector has 0.1101 too,
        and the error is 0. If the shard holds the step above, 0.12 to 0.14, it has 0.12, and the error is 0.0099.
        float32 and float16 values are compared as they are.

        Args:
            quantized: ``[n, width(elements)]``.
            reference: ``[n, elements]``, shortened and not quantized.
        """
        if self.dtype == "binary":
            bits = self._bits(quantized, reference.shape[1])
            return np.where(bits == (reference > 0), reference, 0)
        if self.dtype == "int8":
            return np.clip(reference, *self._intervals(quantized))
        return quantized.astype(np.float32)

    def norm_range(
        self, quantized: Quantized, elements: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The lowest and the highest Euclidean norm of a vector that quantizes to these values, ``[n]`` float64 each.

        An int8 vector of one element whose step covers 0.10 to 0.12 has the norms 0.10 and 0.12. Of float32 and
        float16 the two are the norm itself less and plus its rounding; of binary they are 0 and infinity.

        Args:
            quantized: ``[n, width(elements)]``, every value finite.
            elements: of a vector.
        """
        if self.dtype == "binary":
            return np.zeros(len(quantized)), np.full(len(quantized), np.inf)
        if self.dtype == "int8":
            least, most = self._intervals(quantized)
            nearest = np.where((least <= 0) & (most >= 0), 0, np.minimum(np.abs(least), np.abs(most)))
            farthest = np.maximum(np.abs(least), np.abs(most))
            return np.linalg.norm(nearest, axis=1), np.linalg.norm(farthest, axis=1)
        exact = np.linalg.norm(quantized.astype(np.float64), axis=1)
        # Half a unit in the last place of each element, and of elements too small for that half the smallest step.
        precision = np.finfo(quantized.dtype)
        rounding = exact * float(precision.eps) / 2 + float(precision.smallest_subnormal) / 2 * elements**0.5
        return exact - rounding, exact + rounding

    def _intervals(self, quantized: Quantized) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The lowest and the highest value that each int8 element stands for, ``[n, elements]`` float64."""
        low, step = self._steps()
        code = quantized.astype(np.float64) + 128
        # What was outside the ranges is in the outermost steps.
        return np.where(code == 0, -np.inf, low + code * step), np.where(code == 255, np.inf, low + (code + 1) * step)

    def _steps(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        low, high = np.asarray(self.ranges, np.float32)
        step = (high - low) / 255
        return low, np.where(step == 0, np.float32(1), step)

    def _bits(self, quantized: Quantized, elements: int) -> npt.NDArray[np.uint8]:
        packed = (quantized.astype(np.int16) + 128).astype(np.uint8)
        return np.unpackbits(packed, axis=-1, count=elements)
