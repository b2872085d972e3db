"""The article's fifth section as a tool: how fast TensorRT and PyTorch compute a batch, and how far apart they are.

PyTorch and TensorRT need not live in one Python: each half can run alone. PyTorch's leaves its vectors in a file, which
TensorRT's compares its own with, and both add their records to one JSON file.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.compare import compare
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.files import write_atomically
from contract.words import count
from worker.gpus import gpu_count, lacking

TORCH_SYSTEMS = ("torch-fp32", "torch-fp16", "torch-fp16-compiled")
SYSTEMS = ("tensorrt", *TORCH_SYSTEMS)
INPUT_SETS = 4
"""Batches that take turns, so that no run finds the last one's data in a cache."""


class Shape(NamedTuple):
    """A batch."""

    rows: int
    length: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.length}"


class Inputs(NamedTuple):
    """One batch's arrays in the order of ``contract.engine.INPUTS``, each int32 ``[rows, length]``."""

    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.int32]
    token_type_ids: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Timed:
    """What one system did with one shape."""

    milliseconds: list[float]
    """Of each run."""
    vectors: npt.NDArray[np.float32]
    """float32 ``[n, hidden]``: of the first of the input sets, at token level those of the real tokens."""


@dataclass(frozen=True)
class Record:
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


@dataclass(eq=False)
class Reference:
    """PyTorch FP32's vectors by shape, and the GPU's matrix rate, on their way from one Python to the other."""

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
    def load(cls, path: Path, spec: EngineSpec) -> "Reference":
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


def inputs(spec: EngineSpec, shape: Shape) -> list[Inputs]:
    """Seeded random batches, the same in every Python.

    The last row of several is one token short, so that no system can leave the mask out.

    Returns:
        ``INPUT_SETS`` batches.
    """
    tokenizer = json.loads((spec.folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = len(tokenizer["model"]["vocab"])
    random = np.random.default_rng([shape.rows, shape.length])
    batches = []
    for _ in range(INPUT_SETS):
        # Not the padding id, by which some models count positions.
        ids = random.integers(0, vocabulary - 1, shape, dtype=np.int32)
        ids += ids >= spec.pad_id
        mask = np.ones(shape, np.int32)
        if shape.rows > 1:
            mask[-1, -1], ids[-1, -1] = 0, spec.pad_id
        batches.append(Inputs(ids, mask, np.zeros(shape, np.int32)))
    return batches


def as_batch(spec: EngineSpec, batch: Inputs) -> Batch:
    """The batch as a worker gets it: each row padded to the longest that the engine takes."""
    rows, length = batch.input_ids.shape
    ids, mask, types = (np.pad(array, ((0, 0), (0, spec.max_length - length))) for array in batch)
    return Batch("bench", 0, spec.fingerprint, np.arange(rows), ids, mask, types, mask.sum(axis=1, dtype=np.int32))


def real(spec: EngineSpec, batch: Inputs, output: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The output's vectors, ``[n, hidden]``, without those of padding tokens."""
    return output[batch.attention_mask.astype(bool)] if spec.pooling == "tokens" else output


def runs_of(shape: Shape, asked: int | None) -> int:
    """How often a shape is timed: one row 1,000 times, as the article does."""
    return asked or (1000 if shape.rows == 1 else 100)


def available() -> list[str]:
    """The systems that this Python can time on this machine."""
    torch = importlib.util.find_spec("torch") is not None and gpu_count() > 0
    return (["tensorrt"] if not lacking() else []) + (list(TORCH_SYSTEMS) if torch else [])


def measure(
    spec: EngineSpec,
    systems: Sequence[str],
    shapes: Sequence[Shape],
    *,
    runs: int | None,
    gpu: int,
    reference: Path | None,
    step: Callable[[str], None],
) -> list[Record]:
    """Time systems on shapes.

    Args:
        spec: the engine.
        systems: of ``SYSTEMS``.
        shapes: what to compute.
        runs: of each shape; None for ``runs_of``.
        gpu: the GPU's number.
        reference: where PyTorch FP32's vectors are put if it is among the systems, and else taken from.
        step: takes what is being done.

    Raises:
        UserError: a system or a shape cannot be had here.
    """
    for shape in shapes:
        if shape.length > spec.max_length:
            raise UserError(
                f"{shape} is longer than a row can be", f"engine {spec.name} takes {count(spec.max_length, 'token')}"
            )
    records: list[Record] = []
    taken = reference if "torch-fp32" not in systems else None
    known = Reference.load(taken, spec) if taken else Reference(spec.fingerprint, {})
    if any(system in TORCH_SYSTEMS for system in systems):
        from engine_build.bench_torch import TorchBench  # here: it takes PyTorch, which TensorRT's Python may not have

        bench = TorchBench(spec, gpu)
        known.matrix_tflops = bench.matrix_tflops()
        for system in (system for system in TORCH_SYSTEMS if system in systems):
            for shape in shapes:
                step(f"{system} {shape}")
                timed = bench.time(system, shape, runs_of(shape, runs))
                if system == "torch-fp32":
                    known.vectors[str(shape)] = timed.vectors
                records.append(_record(spec, system, bench.gpu, bench.version, shape, timed, known))
        bench.close()
        if reference and "torch-fp32" in systems:
            known.save(reference)
    if "tensorrt" in systems:
        from engine_build.bench_tensorrt import TensorRTBench  # here: it takes TensorRT

        with TensorRTBench(spec, gpu) as plan:
            for shape in shapes:
                step(f"tensorrt {shape}")
                timed = plan.time(shape, runs_of(shape, runs))
                records.append(_record(spec, "tensorrt", plan.gpu, plan.version, shape, timed, known))
    return records


def _record(
    spec: EngineSpec, system: str, gpu: str, version: str, shape: Shape, timed: Timed, known: Reference
) -> Record:
    ms = float(np.median(timed.milliseconds))
    per_second = shape.rows / ms * 1000
    tflops = spec.flops(shape.length) * per_second / 1e12
    expected = known.vectors.get(str(shape))
    comparison = None if expected is None else compare(timed.vectors, expected)
    return Record(
        system=system,
        model=spec.name,
        gpu=gpu,
        version=version,
        batch=shape.rows,
        length=shape.length,
        runs=len(timed.milliseconds),
        ms=round(ms, 4),
        sequences_per_s=round(per_second, 1),
        tokens_per_s=round(per_second * shape.length, 1),
        tflops=round(tflops, 1),
        chip_share=known.matrix_tflops and round(tflops / known.matrix_tflops, 3),
        mse=comparison.mse if comparison else None,
        relative_mse=comparison.relative_mse if comparison else None,
        min_cosine=comparison.min_cosine if comparison else None,
        max_difference=comparison.max_difference if comparison else None,
    )


def add_to(path: Path, records: Sequence[Record]) -> list[Record]:
    """Write records into a JSON file, in place of older ones of the same system, model, GPU and shape.

    Returns:
        What the file holds now.
    """
    there = [Record(**record) for record in json.loads(path.read_text())] if path.is_file() else []
    by_key = {(one.model, one.gpu, one.batch, one.length, one.system): one for one in [*there, *records]}
    every = sorted(
        by_key.values(), key=lambda one: (one.model, one.gpu, one.length, one.batch, SYSTEMS.index(one.system))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{json.dumps([asdict(one) for one in every], indent=1)}\n".encode())
    return every
