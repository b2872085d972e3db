"""From what a user asks for to the job: defaults are filled in, and what the dataset or the engine cannot do is
refused."""

from dataclasses import dataclass, replace
from typing import Literal

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.form import Dtype, VectorForm
from contract.job import EarlierJob, Job
from contract.jobs import find_job
from contract.reuse import check_fits
from contract.store import Location
from contract.words import count
from producer.calibrate import Ranges
from producer.console import print_note
from producer.options import refuse_taken
from producer.sizing import PER_TOKEN_ROWS, batch_size
from producer.texts import DatasetSource, TextDataset
from producer.tokenizer import RowTokenizer

OVERLAP = 64
"""Tokens that two windows share by default."""


@dataclass(frozen=True)
class JobRequest:
    """What a user asks for, as the options of ``python -m producer`` have it; None where an option is left out."""

    source: DatasetSource
    output: Location
    """The folder of the jobs' folders, absolute."""
    engine: str | None = None
    name: str | None = None
    limit: int | None = None
    prefix: str | None = None
    """None for the engine's own."""
    prompt: str | None = None
    """In place of ``prefix`` the name of one of the model's prompts."""
    batch_rows: int | None = None
    """None to choose it by a sample of the dataset: ``producer.sizing``."""
    dtype: Dtype = "float32"
    ranges: Ranges | None = None
    """For ``int8``: the lowest and the highest value of each element."""
    dimensions: int | None = None
    long_texts: Literal["truncate", "window"] = "truncate"
    overlap: int | None = None
    priority: int = 0
    reuse: tuple[Job, ...] = ()
    """Earlier jobs of which rows with the same text take their vectors."""

    @property
    def earlier_ranges(self) -> Ranges | None:
        """The ranges of int8 that the first of them has: with others none of its vectors could be taken."""
        return next((earlier.form.ranges for earlier in self.reuse if earlier.form.ranges), None)


def earlier_jobs(names: str | None) -> tuple[Job, ...]:
    """The jobs that ``--reuse`` names: folders, URIs, ids or names.

    Raises:
        UserError: one is not there.
    """
    jobs = [find_job(name.strip()) for name in (names or "").split(",") if name.strip()]
    return tuple({job.id: job.model_copy(update={"folder": job.folder.absolute()}) for job in jobs}.values())


def resolve(request: JobRequest, texts: TextDataset, spec: EngineSpec, tokenizer: RowTokenizer) -> Job:
    """The job that a request makes of a dataset and an engine.

    Raises:
        UserError: the engine cannot do what is asked for, or a row of the dataset cannot be read.
    """
    _refuse_sparse(request, spec)
    prefix, overlap = _prefix(request, spec, tokenizer), _overlap(request, spec, tokenizer)
    dimensions = _dimensions(request, spec)
    batch_rows = request.batch_rows or (PER_TOKEN_ROWS if spec.per_token else None)
    if batch_rows is None:
        size = batch_size(texts, _rows(texts, request.limit), tokenizer, prefix, overlap)
        print_note(size.why)
        batch_rows = size.rows
    job = job_of(
        texts,
        spec,
        request.output,
        limit=request.limit,
        name=request.name,
        stream=request.source.stream,
        prefix=prefix,
        batch_rows=batch_rows,
        form=VectorForm(dtype=request.dtype, dimensions=dimensions, ranges=request.ranges),
        overlap=overlap,
        priority=request.priority,
        reuse=tuple(EarlierJob(id=earlier.id, folder=earlier.folder) for earlier in request.reuse),
    )
    for earlier in request.reuse:
        check_fits(earlier, job)
    return job


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


def elements_of(request: JobRequest, spec: EngineSpec) -> int:
    """How many elements a vector has.

    Raises:
        UserError: the request has more than the engine computes, or a form that sparse vectors have not.
    """
    _refuse_sparse(request, spec)
    return _dimensions(request, spec) or spec.hidden


def _refuse_sparse(request: JobRequest, spec: EngineSpec) -> None:
    """Refuse what sparse vectors have not."""
    if spec.layout != "sparse":
        return
    refuse_taken(request.source.columns, spec.layout)
    wanted = {
        f"--dtype {request.dtype}": request.dtype not in ("float32", "float16"),
        f"--dimensions {request.dimensions}": request.dimensions is not None,
        "--long-texts window": request.long_texts == "window",
    }
    for option in (name for name, asked in wanted.items() if asked):
        raise UserError(
            f"{option}: the vectors of engine {spec.name} are sparse",
            "their weights are kept as float32 or float16, of whole texts that are truncated",
            f"leave out {option}, or choose another --engine",
        )


def with_stand_ins(request: JobRequest, spec: EngineSpec) -> JobRequest:
    """A request to be estimated: for int8 with any ranges, of which neither size nor speed depends."""
    if request.dtype != "int8":
        return request
    elements = elements_of(request, spec)
    return replace(request, ranges=request.earlier_ranges or ((-1.0,) * elements, (1.0,) * elements))


def _prefix(request: JobRequest, spec: EngineSpec, tokenizer: RowTokenizer) -> str:
    """The text before every row."""
    prefix = _chosen_prefix(request, spec)
    if prefix and not spec.include_prompt:
        without = f"the model of engine {spec.name} leaves prompts out of its pooling (include_prompt is false)"
        if "onnx" in spec.tiers:
            raise UserError(
                f"--prefix {prefix!r}",
                f"{without}, and a model without prompts of its own is computed with all of a row's tokens pooled",
                "leave out --prefix, or choose another --engine",
            )
        if request.long_texts == "window":
            raise UserError("--long-texts window", f"{without}, and only a text's first window has the prompt")
        if (tokens := tokenizer.prompt_tokens(prefix)) >= spec.max_length - 1:
            raise UserError(
                f"the prompt {prefix!r} has {count(tokens, 'token')}",
                f"{without}: of {count(spec.max_length, 'token')} of a row none would be left",
                "choose a shorter prompt, or build an engine with a larger --max-length",
            )
    return prefix


def _chosen_prefix(request: JobRequest, spec: EngineSpec) -> str:
    if request.prompt is None:
        return spec.prefix if request.prefix is None else request.prefix
    if request.prefix is not None:
        raise UserError("--prefix and --prompt both say what is put before every row", hint="give one of them")
    if request.prompt not in spec.prompts:
        raise UserError(
            f"--prompt {request.prompt}",
            f"the prompts of engine {spec.name} are: {', '.join(spec.prompts) or 'none'}",
            "give the text itself: --prefix TEXT",
        )
    return spec.prompts[request.prompt]


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
    if spec.per_token or "StaticEmbedding" in spec.architecture:
        gives = "is a static model, which has no windows" if not spec.per_token else "gives a vector for each token"
        raise UserError(
            f"engine {spec.name} {gives}",
            "windows are pooled into one vector for each text",
            "leave out --long-texts, or choose another --engine",
        )
    overlap = OVERLAP if request.overlap is None else request.overlap
    if overlap >= tokenizer.window:
        raise UserError(
            f"windows of {count(tokenizer.window, 'token')} cannot share {overlap}", hint="choose a smaller --overlap"
        )
    return overlap
