"""Opens a dataset: from the Hub, from files, or as ``save_to_disk`` left it."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from contract.entry import importing
from contract.errors import UserError, reason
from contract.job import Job
from contract.words import count
from producer.columns import Columns, choose_split, choose_text, features_of, text_columns
from producer.files import files_of, find_local, revision_of
from producer.library import library
from producer.local import open_files
from producer.remote import SCHEMES
from producer.texts import ANY_CSV, NOTHING, CsvOptions, DatasetSource, TextDataset


def open_dataset(source: DatasetSource) -> TextDataset:
    """Open a dataset and find its texts.

    Raises:
        UserError: it cannot be found or read, or has no such split or text column, or no rows.
    """
    with _explained(source.dataset):
        local = find_local(source.dataset)
        if local is None:
            _check_csv(source, is_csv=False)
            library()
            with importing():
                from producer.hub import open_hub
            splits, name, revision = open_hub(source.dataset, source.config, source.revision, stream=source.stream)
            return _of_splits(splits, replace(source, dataset=name, revision=revision))
        name, path = local
        if source.revision is not None or source.stream:
            raise UserError(
                f"{source.dataset} is on this machine"
                if name == str(path)
                else f"{source.dataset} is no dataset on the Hub",
                "--revision and --stream are for datasets on the Hub",
                "leave them out, or name another dataset",
            )
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            opened = replace(source, dataset=name, revision=revision_of(path))
            return _of_splits(_saved(path), opened)
        files = files_of(name, path, source.config)
        _check_csv(source, is_csv=files.kind == "csv")
        return open_files(files, source)


def dataset_of(job: Job) -> TextDataset:
    """The dataset that a job was begun with, as it was then.

    Raises:
        UserError: it is gone, or holds something else by now.
    """
    local = Path(job.dataset).is_absolute() or job.dataset.startswith(SCHEMES)
    revision = None if local else job.revision
    texts = open_dataset(
        DatasetSource(
            job.dataset,
            config=job.config,
            split=job.split,
            revision=revision,
            stream=job.stream,
            text=job.text,
            columns=job.columns,
            csv=CsvOptions(job.csv.separator, job.csv.header) if job.csv else ANY_CSV,
        )
    )
    if texts.revision != job.revision:
        raise UserError(
            f"{job.dataset} was changed (its revision is {texts.revision[:16]})",
            f"job {job.id} embedded revision {job.revision[:16]}",
            "bring that one back, or run the producer again for a new job",
        )
    if min(job.limit or texts.rows, texts.rows) != job.rows:
        raise UserError(
            f"{job.dataset} has {count(texts.rows, 'row')}",
            f"job {job.id} has {job.rows:,} of them" + (f" with the limit {job.limit:,}" if job.limit else ""),
            "run the producer again for a new job",
        )
    return texts


def _check_csv(source: DatasetSource, *, is_csv: bool) -> None:
    if not is_csv and source.csv != ANY_CSV:
        raise UserError(f"{source.dataset} is no csv file", hint="leave out --separator and --no-header")


def _saved(path: Path) -> Mapping[str, Any]:
    """The splits that ``save_to_disk`` wrote.

    Raises:
        UserError: the folder cannot be read.
    """
    datasets = library()
    try:
        saved = datasets.load_from_disk(path)
    except Exception as error:
        raise UserError(
            f"{path} is empty or cannot be read ({reason(error)})", "expected what save_to_disk wrote, with rows"
        ) from None
    if isinstance(saved, datasets.DatasetDict):
        return dict(saved)
    named = re.match(r"\w+", str(saved.split or ""))  # a part of a split is saved as train[:10]
    return {named[0] if named else "train": saved}


def _of_splits(splits: Mapping[str, Any], source: DatasetSource) -> TextDataset:
    """The texts of a dataset that the ``datasets`` library opened; ``source`` has its id and revision."""
    dataset, kept = source.dataset, source.columns
    split = choose_split(source.split, list(splits), dataset)
    table = splits[split]
    if not table.num_rows:
        raise UserError(f"{dataset} has no rows in split {split!r}", NOTHING)
    schema = table.features.arrow_schema
    text = choose_text(text_columns(schema), schema, dataset) if source.text is None else source.text
    columns = Columns(text, kept)
    columns.check(schema, dataset, typed=True)
    roots = dict.fromkeys(column if column in schema.names else column.split(".")[0] for column in columns.needed)
    needed = table.select_columns(list(roots)).with_format("arrow")
    return TextDataset(
        dataset,
        source.config,
        split,
        columns.text,
        source.revision or "",
        needed,
        kept,
        features=features_of(schema, kept),
    )


@contextlib.contextmanager
def _explained(dataset: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:  # a UnicodeError for a file's name
        raise UserError(
            f"{ascii(dataset)[1:-1][:300]} cannot be read ({reason(error)})",
            "expected files that you may read, with names in UTF-8",
        ) from None
