"""A TensorRT plan of an engine, and the profiles it was built for: which shapes it takes."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import CoreSchema, core_schema

PACKED_INPUTS = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "longest", "row_of_token")
"""The packed graph's, each int32 ``[tokens]``, but ``cu_seqlens`` ``[rows + 1]`` and ``longest`` ``[length]``; see
``worker.runtime.layout``. Only the graph of mean pooling has ``row_of_token``."""

ATTENTION_PLUGIN = ("CustomQKVToContextPluginDynamic", "2")
"""Name and version of the TensorRT plug-in in the packed graph."""


class BatchShape(NamedTuple):
    """A rectangle of tokens, such as ``32x512``."""

    rows: int
    length: int
    """Tokens of each row, padding included."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``ROWSxLENGTH``.

        Raises:
            ValueError: it is no such thing.
        """
        return cls(*_numbers(text, "ROWSxLENGTH, such as 32x512"))

    def __str__(self) -> str:
        return f"{self.rows}x{self.length}"


@dataclass(frozen=True)
class PaddedProfile:
    """The shapes that one profile of a padded plan takes. ``1-32x257-512``: 1 to 32 rows, each padded to a length of
    257 to 512 tokens."""

    min: BatchShape
    max: BatchShape

    @property
    def opt(self) -> BatchShape:
        """The shape that TensorRT makes the plan fastest for: the largest, which nearly all micro-batches have."""
        return self.max

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``ROWSxLENGTH``, either of them a number or a range: ``32x512``, ``1-32x257-512``.

        Raises:
            ValueError: it is no such thing.
        """
        match = re.fullmatch(r"(?:(\d+)-)?(\d+)x(?:(\d+)-)?(\d+)", text)
        if match is None:
            raise ValueError(f"{text!r} is no shape: expected ROWSxLENGTH, such as 32x512, or ranges: 1-32x257-512")
        least_rows, rows, shortest, length = match.groups()
        profile = cls(BatchShape(int(least_rows or rows), int(shortest or length)), BatchShape(int(rows), int(length)))
        if not (1 <= profile.min.rows <= profile.max.rows and 1 <= profile.min.length <= profile.max.length):
            raise ValueError(f"{text!r} is an empty range")
        return profile

    def __str__(self) -> str:
        ranges = zip(self.min, self.max, strict=True)
        return "x".join(f"{least}-{most}" if least < most else f"{most}" for least, most in ranges)


@dataclass(frozen=True)
class PackedProfile:
    """The shape that one profile of packed rows takes. ``1056x33792``: at most 1,056 rows end to end, and behind them
    padding up to exactly 33,792 tokens."""

    rows: int
    tokens: int
    longest: int | None = None
    """Most tokens of a row; None for the engine's ``max_length``, in TensorRT's plans alone."""

    def input_rows(self, max_length: int) -> int:
        """Rows of the inputs: ``rows``, and as many more as the padding may need, none of which is longer than the
        longest row may be. Of ``1056x33792`` and 512 they are 1,056 + 66."""
        return self.rows + -(-self.tokens // (self.longest or max_length))

    @property
    def attention_blocks(self) -> int:
        """Blocks that PyTorch's attention starts for each head: one for each 128 tokens of the longest row, for each
        row of the inputs, also an empty one. 0 of a plan's profile, whose attention works row by row."""
        return self.input_rows(self.longest) * -(-self.longest // 128) if self.longest else 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``ROWSxTOKENS``.

        Raises:
            ValueError: it is no such thing.
        """
        return cls(*_numbers(text, "ROWSxTOKENS, such as 1056x33792"))

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


def _numbers(text: str, form: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    first, second = map(int, match.groups()) if match else (0, 0)
    if not (first and second):
        raise ValueError(f"{text!r} is no shape: expected {form}")
    return first, second


class _Text:
    """Pydantic reads a profile from its text, and writes it so. Any other value is refused."""

    def __get_pydantic_core_schema__(self, kind: type[PaddedProfile | PackedProfile], _: object) -> CoreSchema:
        def read(value: object) -> PaddedProfile | PackedProfile:
            if isinstance(value, str):
                return kind.parse(value)
            if not isinstance(value, kind):
                raise ValueError(f"{value!r} is no shape: expected a text, such as 32x512")
            return value

        writes = core_schema.to_string_ser_schema(when_used="always")
        return core_schema.no_info_plain_validator_function(read, serialization=writes)


_Profile = TypeVar("_Profile", PaddedProfile, PackedProfile)

AsText = Annotated[_Profile, _Text()]
"""A profile that is a text in JSON, such as ``1-32x1-512``."""


class PlanSpec(BaseModel):
    """A TensorRT plan of the engine. It runs on one TensorRT version and one compute capability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Relative to the engine's folder."""
    sha256: str
    """Of the plan. A plan is code: only one whose hash is recorded is deserialized."""
    onnx_sha256: str
    """Of the ``model.fp16.onnx`` or ``model.packed.onnx`` that it was built from."""
    tensorrt: str
    """TensorRT's version, such as ``10.13.3.9``; ``RTX 1.7.1.116`` of TensorRT-RTX."""
    sm: int
    """The GPU's compute capability, 90 for 9.0."""
    gpu: str | None
    """The GPU that it was built on, which its tactics were timed on; none of a plan that was built ahead."""
    precision: Literal["fp16"]
    padded_profiles: tuple[AsText[PaddedProfile], ...] = ()
    """Of a plan whose rows are each padded; none of a packed plan."""
    packed_profiles: tuple[AsText[PackedProfile], ...] = ()
    """Of a plan whose rows lie end to end; none of a padded plan."""
    optimization_level: int
    """The builder's, 0 to 5."""
    build_seconds: float
    created: str
    """UTC, ISO 8601."""

    @property
    def packed(self) -> bool:
        """Whether rows lie end to end instead of each being padded."""
        return bool(self.packed_profiles)

    @property
    def profiles(self) -> tuple[PaddedProfile, ...] | tuple[PackedProfile, ...]:
        """Those of its kind."""
        return self.packed_profiles or self.padded_profiles

    @model_validator(mode="after")
    def _has_profiles_of_one_kind(self) -> Self:
        if bool(self.padded_profiles) == bool(self.packed_profiles):
            raise ValueError("a plan has padded or packed profiles")
        return self
