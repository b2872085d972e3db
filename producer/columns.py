"""Which split and which columns of a dataset are embedded: chosen, and refused where they are not there."""

import contextlib
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import UserError
from contract.job import SPLIT
from contract.template import of_column, parse
from producer.library import library


@dataclass(frozen=True)
class Columns:
    """The columns that a job needs."""

    text: str
    """A row's text: a template of ``contract.template``."""
    kept: tuple[str, ...]
    """Those that are carried into the shards."""

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """Those of the template, each once."""
        return tuple(dict.fromkeys(parse(self.text).columns))

    @property
    def needed(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((*self.texts, *self.kept)))

    def check(self, schema: pa.Schema, dataset: str, *, typed: bool) -> None:
        """See that the columns are there, and if ``typed`` that texts are strings.

        Raises:
            UserError: one is not.
        """
        there = ", ".join(map(shortened, schema.names))
        for name in self.texts:
            if (kind := type_at(schema, name)) is None:
                raise UserError(
                    f"no text-column {name!r} in {dataset}", f"there: {there}", "choose one with --text-column"
                )
            if typed and not is_text(kind):
                raise UserError(
                    f"column {name!r} of {dataset} holds {kind}",
                    f"expected a text column (there: {', '.join(text_columns(schema)) or 'none'})",
                    "choose one with --text-column",
                )
        for name in self.kept:
            if name not in schema.names:
                raise UserError(
                    f"no column {name!r} in {dataset}", f"there: {there}", "choose others with --keep-columns"
                )


def text_columns(schema: pa.Schema) -> list[str]:
    """The columns of strings. One of nulls alone counts if it is called ``text``."""
    return [field.name for field in schema if is_text(field.type) or (field.name == "text" and field.type == pa.null())]


def choose_text(candidates: Sequence[str], schema: pa.Schema, dataset: str) -> str:
    """The template of the text column where none is named: ``text``, or the only candidate.

    Raises:
        UserError: there is no candidate, or there are several.
    """
    if "text" in schema.names:
        return of_column("text")
    if not candidates:
        raise UserError(
            f"{dataset} has no text column (its columns: {', '.join(map(shortened, schema.names))})",
            "expected one of strings",
        )
    if len(candidates) > 1:
        raise several_choices("text-column", dataset, list(map(shortened, schema.names)))
    return of_column(candidates[0])


def several_choices(option: str, dataset: str, there: Sequence[str]) -> UserError:
    """The user has to choose with ``--option``."""
    return UserError(
        f"several choices of {option} in {dataset}", f"there: {', '.join(there)}", f"choose one with --{option}"
    )


def choose_split(wanted: str | None, there: list[str], dataset: str) -> str:
    """The split that is asked for; by default ``train``, or the only one.

    Raises:
        UserError: there is none of this name, several could be meant, or a shard cannot be named after it.
    """
    if wanted is not None and wanted not in there:
        raise UserError(f"no split {wanted!r} in {dataset}", f"there: {', '.join(there)}", "choose one with --split")
    if wanted is None and "train" not in there and len(there) != 1:
        raise several_choices("split", dataset, there)
    split = wanted or ("train" if "train" in there else there[0])
    if not re.fullmatch(SPLIT, split):
        raise UserError(f"{split!r} is no name of a split", "it begins the names of files: letters, digits, _, . and -")
    return split


def shortened(name: str) -> str:
    """A column's name for a message: at most 60 characters."""
    return name if len(name) <= 60 else f"{name[:60]}…"


def features_of(schema: pa.Schema, columns: Sequence[str]) -> dict[str, str]:
    """The features of these columns that their Arrow type does not show, from the metadata that ``datasets`` writes.

    Returns:
        Column → its feature as JSON, such as that of a class label.
    """
    if not columns or not schema.metadata:
        return {}
    datasets, found = library(), {}
    for name in columns:
        one = pa.schema([schema.field(name)], metadata=schema.metadata)
        with contextlib.suppress(ValueError):  # a type that the library does not have
            feature = datasets.Features.from_arrow_schema(one)[name]
            if feature != datasets.Features.from_arrow_schema(one.remove_metadata())[name]:
                found[name] = json.dumps(datasets.Features({name: feature}).to_dict()[name])
    return found


def type_at(schema: pa.Schema | pa.StructType, path: str) -> pa.DataType | None:
    """The type of a column, or of a field of a nested one; a column that is literally named so wins."""
    fields = {field.name: field.type for field in schema}
    if path in fields:
        return fields[path]
    kind: pa.DataType | None = None
    for depth, name in enumerate(path.split(".")):
        if depth and not pa.types.is_struct(kind):
            return None
        fields = {field.name: field.type for field in kind or ()} if depth else fields
        if (kind := fields.get(name)) is None:
            return None
    return kind


def values_at(table: pa.RecordBatch | pa.Table, path: str) -> pa.Array:
    """The values of a column, or of a field of a nested one, where there is one: ``type_at``."""
    if path in table.schema.names:
        values = table.column(path)
    else:
        first, *rest = path.split(".")
        values = pc.struct_field(table.column(first), rest)
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def is_text(kind: pa.DataType) -> bool:
    """Whether its values are strings, however they are laid out."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that values are kept as: strings as one of two types that every reader knows."""
    if not is_text(kind):
        return kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.large_string() if pa.types.is_large_string(kind) else pa.string()
