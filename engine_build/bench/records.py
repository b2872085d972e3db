"""What was measured: records in a JSON file, and PyTorch FP32's vectors on their way from one Python to the other."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.compare import compare
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.files import write_atomically
from contract.plan import BatchShape
from engine_build.bench.cases import Timed

TORCH_SYSTEMS = ("torch-fp32", "torch-fp16", "torch-fp16-compiled")
SYSTEMS = ("tensorrt", *TORCH_SYSTEMS)


@dataclass(frozen=True)
class BenchRecord:
    """One line of the JSON file."""

    system: str
    model: str
    gpu: str
    version: str
    batch: int
    length: int
    runs: int
    ms: float
    """Median of one run, by CUDA events, on the GPU's side: copies to and from the host are not in it."""
    sequences_per_s: float
    tokens_per_s: float
    tflops: float
    """10¹² floating-point operations a second, of those that the model asks for; see ``EngineSpec.flops``."""
    chip_share: float | None
    """``tflops`` over what PyTorch's FP16 matrix product of 8,192 × 8,192 reaches on this GPU."""
    mse: float | None
    """Against PyTorch FP32, as the three that follow; None where its vectors were not to be had."""
    relative_mse: float | None
    min_cosine: float | None
    max_difference: float | None

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self.batch, self.length)


@dataclass(frozen=True)
class System:
    """What is timed, and where."""

    name: str
    """Of ``SYSTEMS``."""
    gpu: str
    """The GPU's name."""
    version: str


@dataclass(eq=False)
class ReferenceVectors:
    """PyTorch FP32's vectors by shape, and the GPU's matrix rate."""

    fingerprint: str
    vectors: dict[str, npt.NDArray[np.float32]]
    matrix_tflops: float | None = None

    def save(self, path: Path) -> None:
        """Write it as a ``.npz`` file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = np.nan if self.matrix_tflops is None else self.matrix_tflops
        arrays = {"fingerprint": np.array(self.fingerprint), "matrix_tflops": np.array(rate), **self.vectors}
        with path.open("wb") as file:  # to a path that does not end in .npz numpy adds it
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path, spec: EngineSpec) -> "ReferenceVectors":
        """Read what ``save`` wrote.

        Raises:
            UserError: it is not there, or of another engine.
        """
        if not path.is_file():
            raise UserError(
                f"no file {path}",
                "expected PyTorch's vectors",
                f"where PyTorch is: python -m engine_build bench --engine {spec.name} --system torch-fp32 "
                f"--reference {path}",
            )
        with np.load(path) as file:
            vectors = dict(file)
        fingerprint, rate = str(vectors.pop("fingerprint")), float(vectors.pop("matrix_tflops"))
        if fingerprint != spec.fingerprint:
            raise UserError(f"{path} is of engine {fingerprint}", f"engine {spec.name} is {spec.fingerprint}")
        return cls(fingerprint, vectors, None if np.isnan(rate) else rate)


def record_of(
    spec: EngineSpec, system: System, shape: BatchShape, timed: Timed, reference: ReferenceVectors
) -> BenchRecord:
    """The record of one system and one shape."""
    ms = float(np.median(timed.milliseconds))
    per_second = shape.rows / ms * 1000
    tflops = spec.flops(shape.length) * per_second / 1e12
    expected = reference.vectors.get(str(shape))
    comparison = None if expected is None else compare(timed.vectors, expected)
    return BenchRecord(
        system=system.name,
        model=spec.name,
        gpu=system.gpu,
        version=system.version,
        batch=shape.rows,
        length=shape.length,
        runs=len(timed.milliseconds),
        ms=round(ms, 4),
        sequences_per_s=round(per_second, 1),
        tokens_per_s=round(per_second * shape.length, 1),
        tflops=round(tflops, 1),
        chip_share=reference.matrix_tflops and round(tflops / reference.matrix_tflops, 3),
        mse=comparison.mse if comparison else None,
        relative_mse=comparison.relative_mse if comparison else None,
        min_cosine=comparison.min_cosine if comparison else None,
        max_difference=comparison.max_difference if comparison else None,
    )


def add_to(path: Path, records: Sequence[BenchRecord]) -> list[BenchRecord]:
    """Write records into a JSON file, in place of older ones of the same system, model, GPU and shape.

    Returns:
        What the file holds now.
    """
    older = [BenchRecord(**record) for record in json.loads(path.read_text())] if path.is_file() else []
    by_key = {(one.model, one.gpu, one.batch, one.length, one.system): one for one in [*older, *records]}
    every = sorted(
        by_key.values(), key=lambda one: (one.model, one.gpu, one.length, one.batch, SYSTEMS.index(one.system))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{json.dumps([asdict(one) for one in every], indent=1)}\n".encode())
    return every
