"""A dataset's first batches, as the producer makes them: what an engine's own speed is measured on."""

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from contract.engine import EngineSpec
from contract.store import location
from producer.batches import Work
from producer.dataset import open_dataset
from producer.request import JobRequest, resolve
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer

_SAMPLED = 8
"""Batches that the engine's own speed is measured on."""


@dataclass(frozen=True)
class Sample:
    """The dataset's first batches, made as the producer makes them."""

    folder: Path
    """A file for each batch's bytes."""
    tokenize: float
    """Seconds of a batch on one core, the median."""
    row_bytes: float
    """Of the batches' bytes."""
    batch_rows: int


def sample_batches(file: Path, folder: Path, spec: EngineSpec, batch_rows: int | None) -> Sample:
    """Make a dataset's first batches.

    Args:
        file: the dataset.
        folder: where their bytes go.
        spec: the engine whose tokenizer makes them.
        batch_rows: rows of a batch; None for what the producer chooses.
    """
    source = DatasetSource(str(file))
    texts, tokenizer = open_dataset(source), open_tokenizer(spec)
    request = JobRequest(source, location(folder), engine=spec.name, batch_rows=batch_rows)
    work, seconds, rows, size = Work(resolve(request, texts, spec, tokenizer), texts, tokenizer), [], 0, 0
    job = work.job
    folder.mkdir()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number in range(min(_SAMPLED, job.batches)):
        began = time.perf_counter()
        payload = work.payload(number)
        seconds.append(time.perf_counter() - began)
        rows += len(job.row_range(number))
        size += (folder / f"{number:04d}").write_bytes(payload)
    del os.environ["TOKENIZERS_PARALLELISM"]  # sentence-transformers is not to be held back
    return Sample(folder, statistics.median(seconds), size / rows, job.batch_rows)
