"""A TensorRT plan of an engine, and the shapes that it takes."""

import re
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, field_serializer, field_validator

PACKED_INPUTS = ("input_ids", "token_type_ids", "position_ids", "row_of_token", "cu_seqlens", "longest")
"""The packed graph's, each int32: the first four ``[tokens]``, then ``[rows + 1]`` and ``[length]``; see
``worker.layout``."""

ATTENTION_PLUGIN = ("CustomQKVToContextPluginDynamic", "2")
"""Name and version of the TensorRT plug-in in the packed graph."""


class Profile(NamedTuple):
    """Shapes that a plan takes: from ``least_rows × shortest`` to ``rows × length``, which it is made fastest for.

    A packed plan's are exactly ``length`` tokens of at most ``rows`` rows together.
    """

    least_rows: int
    rows: int
    shortest: int
    """Tokens of a row; shorter rows are padded up to it."""
    length: int
    """Most tokens of a row; of a packed plan, of all rows."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``ROWSxLENGTH``, either of them a number or a range: ``32x512``, ``1-32x257-512``.

        Raises:
            ValueError: it is no such thing.
        """
        match = re.fullmatch(r"(?:(\d+)-)?(\d+)x(?:(\d+)-)?(\d+)", text)
        if match is None:
            raise ValueError(f"{text!r} is no shape: expected ROWSxLENGTH, such as 32x512, or ranges: 1-32x257-512")
        least_rows, rows, shortest, length = (int(part) if part else None for part in match.groups())
        profile = cls(least_rows or rows or 0, rows or 0, shortest or length or 0, length or 0)
        if not (1 <= profile.least_rows <= profile.rows and 1 <= profile.shortest <= profile.length):
            raise ValueError(f"{text!r} is an empty range")
        return profile

    def __str__(self) -> str:
        rows = f"{self.least_rows}-{self.rows}" if self.least_rows < self.rows else f"{self.rows}"
        length = f"{self.shortest}-{self.length}" if self.shortest < self.length else f"{self.length}"
        return f"{rows}x{length}"


def packed_rows(profile: Profile, max_length: int) -> int:
    """Rows of a packed plan's shape: the profile's, and as many more as padding may need, none longer than a row."""
    return profile.rows + -(-profile.length // max_length)


class PlanSpec(BaseModel):
    """A TensorRT plan of the engine. It runs on one TensorRT version and one compute capability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Relative to the engine's folder."""
    sha256: str
    """Of the plan. A plan is code: only one whose hash is recorded is deserialized."""
    onnx_sha256: str
    """Of the ``model.fp16.onnx`` or ``model.packed.onnx`` that it was built from."""
    packed: bool
    """Whether rows lie end to end instead of each being padded."""
    tensorrt: str
    """TensorRT's version, such as ``10.13.3.9``."""
    sm: int
    """The GPU's compute capability, 90 for 9.0."""
    gpu: str
    """The GPU that it was built on, which its tactics were timed on."""
    precision: Literal["fp16"]
    profiles: tuple[Profile, ...]
    optimization_level: int
    """The builder's, 0 to 5."""
    build_seconds: float
    created: str
    """UTC, ISO 8601."""

    @field_validator("profiles", mode="before")
    @classmethod
    def _parsed(cls, profiles: list[object]) -> list[object]:
        return [Profile.parse(profile) if isinstance(profile, str) else profile for profile in profiles]

    @field_serializer("profiles")
    def _written(self, profiles: tuple[Profile, ...]) -> list[str]:
        return [str(profile) for profile in profiles]
