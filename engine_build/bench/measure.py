"""Which systems compute which batches."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.plan import BatchShape
from contract.words import count
from engine_build.bench.cases import runs_of
from engine_build.bench.records import SYSTEMS, TORCH_SYSTEMS, BenchRecord, ReferenceVectors, record_of
from worker.runtime.gpus import gpu_count, lacking


@dataclass(frozen=True)
class Cases:
    """What is to be timed."""

    systems: Sequence[str]
    """Of ``SYSTEMS``."""
    shapes: Sequence[BatchShape]
    runs: int | None = None
    """Of each shape; None for ``runs_of``."""
    gpu: int = 0
    """The GPU's number."""

    @property
    def torch_systems(self) -> list[str]:
        return [system for system in SYSTEMS if system in TORCH_SYSTEMS and system in self.systems]


def available() -> list[str]:
    """The systems that this Python can time on this machine."""
    torch = importlib.util.find_spec("torch") is not None and gpu_count() > 0
    return (["tensorrt"] if not lacking() else []) + (list(TORCH_SYSTEMS) if torch else [])


def measure(
    spec: EngineSpec, cases: Cases, *, reference_file: Path | None, step: Callable[[str], None]
) -> list[BenchRecord]:
    """Time systems on shapes.

    Args:
        spec: the engine.
        cases: the systems and shapes.
        reference_file: where PyTorch FP32's vectors are put if it is among the systems, and else taken from.
        step: takes what is being done.

    Raises:
        UserError: a system or a shape cannot be had here.
    """
    for shape in cases.shapes:
        if shape.length > spec.max_length:
            raise UserError(
                f"{shape} is longer than a row can be", f"engine {spec.name} takes {count(spec.max_length, 'token')}"
            )
    if reference_file and "torch-fp32" not in cases.systems:
        reference = ReferenceVectors.load(reference_file, spec)
    else:
        reference = ReferenceVectors(spec.fingerprint, {})
    records: list[BenchRecord] = []
    if cases.torch_systems:
        records += _measure_torch(spec, cases, reference, step)
        if reference_file and "torch-fp32" in cases.systems:
            reference.save(reference_file)
    if "tensorrt" in cases.systems:
        records += _measure_tensorrt(spec, cases, reference, step)
    return records


def _measure_torch(
    spec: EngineSpec, cases: Cases, reference: ReferenceVectors, step: Callable[[str], None]
) -> list[BenchRecord]:
    """Adds PyTorch FP32's vectors, and the GPU's matrix rate, to the reference."""
    from engine_build.bench.torch import torch_bench  # here: it takes PyTorch, which TensorRT's Python may not have

    records = []
    with torch_bench(spec, cases.gpu) as bench:
        reference.matrix_tflops = bench.matrix_tflops()
        for name in cases.torch_systems:
            for shape in cases.shapes:
                step(f"{name} {shape}")
                timed = bench.time(name, shape, runs_of(shape, cases.runs))
                if name == "torch-fp32":
                    reference.vectors[str(shape)] = timed.vectors
                records.append(record_of(spec, bench.system(name), shape, timed, reference))
    return records


def _measure_tensorrt(
    spec: EngineSpec, cases: Cases, reference: ReferenceVectors, step: Callable[[str], None]
) -> list[BenchRecord]:
    from engine_build.bench.tensorrt import tensorrt_bench  # here: it takes TensorRT

    records = []
    with tensorrt_bench(spec, cases.gpu) as bench:
        for shape in cases.shapes:
            step(f"tensorrt {shape}")
            timed = bench.time(shape, runs_of(shape, cases.runs))
            records.append(record_of(spec, bench.system, shape, timed, reference))
    return records
