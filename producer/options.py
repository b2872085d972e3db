"""What the command's options mean for a job, and what of them is refused."""

from pathlib import Path
from typing import Any

import click

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.form import VectorForm
from contract.job import Job, job_id
from contract.shard import COLUMNS
from contract.store import ObjectPath
from producer.batches import open_tokenizer
from producer.dataset import TextDataset

OVERLAP = 64
"""Tokens that two windows share, unless told otherwise."""


class Folder(click.Path):
    """A folder, or an object store's URI."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if "://" not in str(value):
            return super().convert(value, parameter, context)
        try:
            return ObjectPath(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)


def in_utf8(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """What a job's record can hold: an argument may be any bytes."""
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("expected UTF-8") from None
    return value


def columns_of(names: str | None) -> tuple[str, ...]:
    """The columns that ``--keep-columns`` names.

    Raises:
        UserError: a shard has a column of this name.
    """
    columns = tuple(dict.fromkeys(name for part in (names or "").split(",") if (name := part.strip())))
    if taken := [name for name in columns if name in COLUMNS]:
        raise UserError(f"a shard has a column {taken[0]} of its own", mend="leave it out of --keep-columns")
    return columns


def dimensions_of(spec: EngineSpec, dimensions: int | None) -> int | None:
    """``--dimensions``; None where they are all that the engine computes.

    Raises:
        UserError: they are more than that.
    """
    if dimensions and dimensions > spec.hidden:
        raise UserError(f"engine {spec.name} computes {spec.hidden} dimensions", f"found --dimensions {dimensions}")
    return None if dimensions == spec.hidden else dimensions


def overlap_of(spec: EngineSpec, long_texts: str, overlap: int | None) -> int | None:
    """``Job.overlap`` from ``--long-texts`` and ``--overlap``.

    Raises:
        UserError: they do not go together, or not with the engine.
    """
    if long_texts != "window":
        if overlap is not None:
            raise UserError("--overlap is for windows", mend="add --long-texts window")
        return None
    if spec.pooling == "tokens":
        raise UserError(
            f"engine {spec.name} gives a vector for each token",
            "windows are pooled into one vector for each text",
            "leave out --long-texts, or choose another --engine",
        )
    overlap = OVERLAP if overlap is None else overlap
    if overlap >= (window := open_tokenizer(spec).window):
        raise UserError(f"windows of {window} tokens cannot share {overlap}", mend="choose a smaller --overlap")
    return overlap


def job_of(
    texts: TextDataset, spec: EngineSpec, output: Path | ObjectPath, *, limit: int | None, **chosen: object
) -> Job:
    """A job, its folder below ``output`` and named after all that decides its rows.

    Args:
        texts: the dataset.
        spec: the engine.
        output: the folder of the jobs' folders.
        limit: only this many rows; None for all.
        chosen: the further fields of a ``Job``.
    """
    fields = dict(
        folder=output,
        dataset=texts.dataset,
        config=texts.config,
        split=texts.split,
        column=texts.column,
        revision=texts.revision,
        limit=limit,
        engine=spec.name,
        fingerprint=spec.fingerprint,
        rows=min(limit or texts.rows, texts.rows),
        columns=texts.columns,
    )
    return _named(Job.model_validate(fields | chosen), output)


def in_form(job: Job, form: VectorForm) -> Job:
    """The same job with its vectors in another form."""
    return _named(job.model_copy(update={"form": form}), job.folder.parent)


def _named(job: Job, output: Path | ObjectPath) -> Job:
    return job.model_copy(update={"folder": output / job_id(job.identity, job.dataset)})
