"""From what a user asks for to the job: defaults are filled in, and what the dataset or the engine cannot do is
refused."""

from dataclasses import dataclass
from typing import Literal

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.form import Dtype, VectorForm
from contract.job import Job
from contract.store import Location
from contract.words import count
from producer.batches import RowTokenizer
from producer.calibrate import Ranges
from producer.console import print_note
from producer.sizing import PER_TOKEN_ROWS, batch_size
from producer.texts import ANY_CSV, CsvOptions, DatasetSource, TextDataset

OVERLAP = 64
"""Tokens that two windows share by default."""


@dataclass(frozen=True)
class JobRequest:
    """What a user asks for, as the options of ``python -m producer`` have it; None where an option is left out."""

    source: DatasetSource
    output: Location
    """The folder of the jobs' folders, absolute."""
    text: str | None = None
    """A template of ``contract.template``; None for the dataset's text column."""
    columns: tuple[str, ...] = ()
    """Columns to be carried into the shards."""
    csv: CsvOptions = ANY_CSV
    engine: str | None = None
    name: str | None = None
    limit: int | None = None
    prefix: str | None = None
    """None for the engine's own."""
    batch_rows: int | None = None
    """None to choose it by a sample of the dataset: ``producer.sizing``."""
    dtype: Dtype = "float32"
    ranges: Ranges | None = None
    """For ``int8``: the lowest and the highest value of each element."""
    dimensions: int | None = None
    long_texts: Literal["truncate", "window"] = "truncate"
    overlap: int | None = None


def resolve(request: JobRequest, texts: TextDataset, spec: EngineSpec, tokenizer: RowTokenizer) -> Job:
    """The job that a request makes of a dataset and an engine.

    Raises:
        UserError: the engine cannot do what is asked for, or a row of the dataset cannot be read.
    """
    prefix, overlap = _prefix(request, spec), _overlap(request, spec, tokenizer)
    batch_rows = request.batch_rows or (PER_TOKEN_ROWS if spec.per_token else None)
    return job_of(
        texts,
        spec,
        request.output,
        limit=request.limit,
        name=request.name,
        stream=request.source.stream,
        prefix=prefix,
        batch_rows=batch_rows or _batch_rows(texts, request.limit, tokenizer, prefix, overlap),
        form=VectorForm(dtype=request.dtype, dimensions=_dimensions(request, spec), ranges=request.ranges),
        overlap=overlap,
    )


def job_of(texts: TextDataset, spec: EngineSpec, output: Location, *, limit: int | None, **chosen: object) -> Job:
    """A job, its folder below ``output`` and named after all that decides its rows.

    Args:
        texts: the dataset.
        spec: the engine.
        output: the folder of the jobs' folders.
        limit: only this many rows; None for all.
        chosen: the further fields of a ``Job``.
    """
    fields = dict(
        dataset=texts.dataset,
        config=texts.config,
        split=texts.split,
        text=texts.text,
        csv=texts.csv,
        revision=texts.revision,
        limit=limit,
        engine=spec.name,
        fingerprint=spec.fingerprint,
        rows=_rows(texts, limit),
        columns=texts.columns,
    )
    return Job.create(output, **(fields | chosen))


def _rows(texts: TextDataset, limit: int | None) -> int:
    return min(limit or texts.rows, texts.rows)


def _batch_rows(
    texts: TextDataset, limit: int | None, tokenizer: RowTokenizer, prefix: str, overlap: int | None
) -> int:
    """Rows of a batch where the user names no number; says which, and why."""
    size = batch_size(texts, _rows(texts, limit), tokenizer, prefix, overlap)
    print_note(size.why)
    return size.rows


def elements_of(request: JobRequest, spec: EngineSpec) -> int:
    """How many elements a vector has.

    Raises:
        UserError: the request has more than the engine computes.
    """
    return _dimensions(request, spec) or spec.hidden


def _prefix(request: JobRequest, spec: EngineSpec) -> str:
    """The text before every row."""
    if request.prefix and not spec.include_prompt:
        raise UserError(
            f"--prefix {request.prefix!r}",
            f"the model of engine {spec.name} leaves prompts out of its pooling (include_prompt is false), "
            "and embedmill pools over all of a row's tokens",
            "leave out --prefix, or choose another --engine",
        )
    return spec.prefix if request.prefix is None else request.prefix


def _dimensions(request: JobRequest, spec: EngineSpec) -> int | None:
    """``VectorForm.dimensions``: None where they are all that the engine computes."""
    if request.dimensions and request.dimensions > spec.hidden:
        raise UserError(
            f"engine {spec.name} computes {count(spec.hidden, 'dimension')}", f"found --dimensions {request.dimensions}"
        )
    return None if request.dimensions == spec.hidden else request.dimensions


def _overlap(request: JobRequest, spec: EngineSpec, tokenizer: RowTokenizer) -> int | None:
    """``Job.overlap``: None where long texts are truncated."""
    if request.long_texts != "window":
        if request.overlap is not None:
            raise UserError("--overlap is for windows", hint="add --long-texts window")
        return None
    if spec.per_token:
        raise UserError(
            f"engine {spec.name} gives a vector for each token",
            "windows are pooled into one vector for each text",
            "leave out --long-texts, or choose another --engine",
        )
    overlap = OVERLAP if request.overlap is None else request.overlap
    if overlap >= tokenizer.window:
        raise UserError(
            f"windows of {count(tokenizer.window, 'token')} cannot share {overlap}", hint="choose a smaller --overlap"
        )
    return overlap
