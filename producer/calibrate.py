"""The ranges of int8 vectors: the lowest and the highest value of each element, over vectors that are floats."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.errors import UserError, reason
from contract.job import Job
from contract.jobs import find_job
from contract.shard import open_file
from contract.store import location

CALIBRATION_ROWS = 4096
"""Rows whose vectors give the ranges where the user names none; they are computed twice."""

Ranges = tuple[tuple[float, ...], tuple[float, ...]]


def ranges_from(name: str, elements: int) -> Ranges:
    """The ranges that a user names.

    Args:
        name: a numpy file with an array ``[2, elements]``; or a job's folder, URI or id: an int8 job's own ranges, or
            those of a float job's vectors.
        elements: of a vector.

    Raises:
        UserError: there is no such file or job, or its vectors have another number of elements.
    """
    if name.endswith(".npy"):
        ranges = _plain(_read(name))
    else:
        job = find_job(name)
        ranges = job.form.ranges or ranges_of(job)
    if len(ranges[0]) != elements:
        raise UserError(f"{name} has the ranges of {len(ranges[0])} elements", f"expected {elements}")
    return ranges


def ranges_of(job: Job) -> Ranges:
    """The ranges of a job's vectors.

    Raises:
        UserError: it has none, or none that are floats.
    """
    if not pa.types.is_floating(job.form.element):
        raise UserError(f"job {job.id} has {job.form.dtype} vectors", "ranges are taken from float32 or float16 ones")
    found = []
    for batch in sorted(job.committed()):
        with open_file(job.shard(batch)) as file:
            values = file.read(columns=["embedding"]).column("embedding").combine_chunks()
        while not pa.types.is_fixed_size_list(values.type):
            values = values.flatten()  # a list of vectors, where there is one for each token
        vectors = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
        if len(vectors):
            found += [vectors.min(axis=0), vectors.max(axis=0)]
    if not found:
        raise UserError(f"job {job.id} has no vector", "ranges need some")
    return _plain(np.stack([np.min(found, axis=0), np.max(found, axis=0)]))


def _read(file: str) -> npt.NDArray[np.floating]:
    try:
        path = location(file)
        if not path.local:
            raise ValueError("it is not on a disk")
        found = np.load(str(path), allow_pickle=False)
        if found.ndim != 2 or len(found) != 2 or not np.isfinite(found).all() or (found[0] > found[1]).any():
            raise ValueError(f"an array of shape {found.shape}, or its values are out of order")
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise UserError(
            f"{file} holds no ranges ({reason(error)})",
            "expected an array [2, elements], lowest and highest, by numpy.save",
        ) from None
    return found


def _plain(ranges: npt.NDArray[np.floating]) -> Ranges:
    low, high = ranges.astype(np.float32).astype(float).tolist()
    return tuple(low), tuple(high)
