"""What the command's options mean for a job, and what of them is refused."""

import re
from pathlib import Path
from typing import Any

import click

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.form import VectorForm
from contract.job import NAME, Job
from contract.shard import COLUMNS
from contract.store import ObjectPath, location
from contract.words import count
from producer.batches import open_tokenizer
from producer.dataset import TextDataset

OVERLAP = 64
"""Tokens that two windows share, unless told otherwise."""


class Folder(click.Path):
    """A folder, or an object store's URI."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            place = location(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)
        return place if isinstance(place, ObjectPath) else super().convert(value, parameter, context)


def in_utf8(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """What a job's record can hold: an argument may be any bytes."""
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("expected UTF-8") from None
    return value


def job_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A name that can begin a folder's name."""
    if value is not None and not re.fullmatch(NAME, value):
        raise click.BadParameter("expected 1 to 64 letters a to z, digits and hyphens, such as reviews-minilm")
    return value


def separator_of(value: str | None) -> str | None:
    """The character that ``--separator`` names.

    Raises:
        UserError: it is none that can separate fields.
    """
    separator = {"tab": "\t", "\\t": "\t"}.get(value or "", value)
    if separator is not None and (len(separator) != 1 or not separator.isascii() or separator in '"\r\n'):
        raise UserError(f"--separator {value!r} cannot separate fields", "expected one ASCII character, or tab")
    return separator


def columns_of(names: str | None) -> tuple[str, ...]:
    """The columns that ``--keep-columns`` names.

    Raises:
        UserError: a shard has a column of this name.
    """
    columns = tuple(dict.fromkeys(name for part in (names or "").split(",") if (name := part.strip())))
    if taken := [name for name in columns if name in COLUMNS]:
        raise UserError(f"a shard has a column {taken[0]} of its own", mend="leave it out of --keep-columns")
    return columns


def prefix_of(spec: EngineSpec, prefix: str | None) -> str:
    """The text before every row: ``--prefix``, or else the engine's own.

    Raises:
        UserError: the engine's model leaves prompts out of its pooling.
    """
    if prefix and not spec.include_prompt:
        raise UserError(
            f"--prefix {prefix!r}",
            f"the model of engine {spec.name} leaves prompts out of its pooling (include_prompt is false), "
            "and embedmill pools over all of a row's tokens",
            "leave out --prefix, or choose another --engine",
        )
    return spec.prefix if prefix is None else prefix


def dimensions_of(spec: EngineSpec, dimensions: int | None) -> int | None:
    """``--dimensions``; None where they are all that the engine computes.

    Raises:
        UserError: they are more than that.
    """
    if dimensions and dimensions > spec.hidden:
        raise UserError(
            f"engine {spec.name} computes {count(spec.hidden, 'dimension')}", f"found --dimensions {dimensions}"
        )
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
    if spec.per_token:
        raise UserError(
            f"engine {spec.name} gives a vector for each token",
            "windows are pooled into one vector for each text",
            "leave out --long-texts, or choose another --engine",
        )
    overlap = OVERLAP if overlap is None else overlap
    if overlap >= (window := open_tokenizer(spec).window):
        raise UserError(
            f"windows of {count(window, 'token')} cannot share {overlap}", mend="choose a smaller --overlap"
        )
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
        dataset=texts.dataset,
        config=texts.config,
        split=texts.split,
        text=texts.text,
        csv=texts.csv,
        revision=texts.revision,
        limit=limit,
        engine=spec.name,
        fingerprint=spec.fingerprint,
        rows=min(limit or texts.rows, texts.rows),
        columns=texts.columns,
    )
    return Job.create(output, **(fields | chosen))


def in_form(job: Job, form: VectorForm) -> Job:
    """The same job with its vectors in another form."""
    return Job.create(job.folder.parent, **(job.model_dump(exclude={"id", "folder"}) | {"form": form}))
