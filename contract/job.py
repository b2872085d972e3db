"""A job: one dataset through one engine, cut into numbered batches, each of which becomes one shard.

output/<job id>/
    job.json        this module's Job
    data/           <split>-00000-of-00025.parquet, one per batch, nothing else
    staging/        shards that are being written; none in an object store, where an object is there once it is complete
    aside/          files that were found at fault, once a command made room for good ones
    verify.json     the verifier's verdict, and report.html for people
    report.html     the same with pictures
    repeated/       a job of the texts that several batches have, each embedded once
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NewType

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from contract import template
from contract.errors import UserError, first_fault
from contract.form import VectorForm
from contract.store import Location, LocationField

JobKey = NewType("JobKey", str)
"""What tells a job from all others on a Redis (``Job.key``). Not its id: two jobs in two folders may share one."""

REPEATED = "repeated"
"""The name of ``Job.repeated``."""

SPLIT = r"^\w[\w.-]*$"
"""A split's name: it begins the names of files."""

NAME = r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$"
"""A job's name: it begins its folder's name."""

PRIORITIES = 100
"""The highest priority of a job; its negative is the lowest."""


class CsvDialect(BaseModel):
    """How csv files are written, besides what is the same in all: ``"`` quotes, and ``""`` is a quote inside quotes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    separator: str = Field(min_length=1, max_length=1)
    """Between two fields."""
    header: bool
    """Whether the first row names the columns; otherwise they are ``column_1``, ``column_2``, …"""


class EarlierJob(BaseModel):
    """A job of which another one takes vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    folder: LocationField


class Job(BaseModel):
    """``job.json``: what is embedded, by what, and how it is cut. The same command gives the same job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """``due_id``, unless somebody edited ``job.json``."""
    folder: LocationField
    """Absolute path or object store's URI of the job's folder, as the producer and the workers see it."""
    name: str | None = Field(default=None, pattern=NAME)
    """What its user calls it; None: it is called by its dataset and split."""
    dataset: str
    """Hub id, or absolute path of a local file or folder."""
    config: str | None
    """The dataset's configuration; None for its only one."""
    split: str = Field(pattern=SPLIT)
    """Begins the shards' names."""
    text: str
    """A row's text, made of its columns: a template of ``contract.template``. One column as it is: ``{body}``."""
    csv: CsvDialect | None = None
    """How the csv or tsv files are written; None for a dataset of another kind."""
    revision: str
    """What the dataset holds: the Hub commit, or a hash over a local dataset's files."""
    stream: bool = False
    """Whether the dataset's rows are read where they are, on the Hub, and not downloaded."""
    limit: int | None
    """Only this many rows from the dataset's start; None for all."""
    prefix: str
    """Text put before every row."""
    engine: str
    """Name of the engine."""
    fingerprint: str
    """The engine's fingerprint."""
    rows: int = Field(ge=1)
    batch_rows: int = Field(ge=1)
    form: VectorForm = VectorForm()
    """The form in which the vectors are kept."""
    columns: tuple[str, ...] = ()
    """Columns of the dataset that are carried into the shards."""
    priority: int = Field(default=0, ge=-PRIORITIES, le=PRIORITIES)
    """Workers take batches of a job of higher priority first."""
    overlap: int | None = Field(default=None, ge=0)
    """A text with more tokens than the engine takes is cut into windows that share this many tokens, and has the mean
    of their vectors; None: it is truncated."""
    reuse: tuple[EarlierJob, ...] = ()
    """Jobs of which rows with the same text take their vectors, the first one that has the text first."""

    @field_validator("text")
    @classmethod
    def _is_template(cls, text: str) -> str:
        template.parse(text)
        return text

    @property
    def parts(self) -> template.Template:
        """``text``, parsed."""
        return template.parse(self.text)

    @classmethod
    def create(cls, output: Location, **fields: object) -> "Job":
        """A job whose folder below ``output`` has the job's id for a name.

        Args:
            output: the folder of the jobs' folders.
            fields: all others but ``id`` and ``folder``.
        """
        draft = cls.model_validate({"id": "", "folder": output} | fields)
        return draft.model_copy(update={"id": draft.due_id, "folder": output / draft.due_id})

    @property
    def identity(self) -> dict[str, object]:
        """What makes two jobs the same job: all that decides the rows of its shards, and not where things lie."""
        apart = {"id", "folder", "name", "dataset", "engine", "stream", "priority"}
        fields = self.model_dump(mode="json", exclude=apart)
        return fields | {"reuse": [earlier.id for earlier in self.reuse]}

    @property
    def due_id(self) -> str:
        """The id that these fields have: the job's name, or else the dataset's and the split's, for people, and a hash
        of ``identity``."""
        stem = Path(self.dataset).name.split(".")[0]
        readable = self.name or re.sub(r"[^a-z0-9]+", "-", f"{stem}-{self.split}".lower()).strip("-")
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        return f"{readable}-{digest[:10]}"

    @property
    def key(self) -> JobKey:
        """What tells the job from all others on a Redis: its id, and a hash of its folder. The same rows embedded into
        two folders are two jobs there."""
        return JobKey(f"{self.id}.{hashlib.sha256(str(self.folder).encode()).hexdigest()[:6]}")

    @property
    def windowed(self) -> bool:
        """Whether a long text is cut into windows instead of being truncated."""
        return self.overlap is not None

    @property
    def repeated(self) -> Location:
        """The folder of the job of the texts that several batches have."""
        return self.folder / REPEATED

    @property
    def sources(self) -> list[Location]:
        """The folders of the jobs of which rows take vectors, by their number in ``Origins.job``."""
        return [*(earlier.folder for earlier in self.reuse), self.repeated]

    @property
    def batches(self) -> int:
        return -(-self.rows // self.batch_rows)

    def row_range(self, batch: int) -> range:
        """The rows of a batch: a contiguous slice of the dataset."""
        return range(batch * self.batch_rows, min((batch + 1) * self.batch_rows, self.rows))

    @property
    def data(self) -> Location:
        return self.folder / "data"

    @property
    def staging(self) -> Location:
        """A sibling of ``data``: readers of Parquet folders stumble over any other file in ``data``."""
        return self.folder / "staging"

    def shard(self, batch: int) -> Location:
        """Where a batch's shard lies once it is committed, named as the Hub names shards."""
        return self.data / f"{self.split}-{batch:05d}-of-{self.batches:05d}.parquet"

    def committed(self) -> set[int]:
        """The batches that have a shard. The folder is the truth: nothing else is asked."""
        return set(self._batches(self.data.names()))

    def written(self) -> dict[int, float]:
        """When each shard that is there was written, in seconds since the epoch."""
        there = self.data.entries()
        return {batch: there[name].modified for batch, name in self._batches(there).items()}

    def bytes(self) -> int:
        """Of the shards that are there."""
        there = self.data.entries()
        return sum(there[name].size for name in self._batches(there).values())

    def leftovers(self) -> list[Location]:
        """Files that killed workers left in ``staging``."""
        return [self.staging / name for name in sorted(self.staging.names())]

    def _batches(self, names: Iterable[str]) -> dict[int, str]:
        """Which of these names are shards of this job: batch → name."""
        begin, end = f"{self.split}-", f"-of-{self.batches:05d}.parquet"
        fit = ((name[len(begin) : -len(end)], name) for name in names if name.startswith(begin) and name.endswith(end))
        found = {int(digits): name for digits, name in fit if digits.isdecimal() and digits == f"{int(digits):05d}"}
        return {batch: name for batch, name in found.items() if batch < self.batches}

    def set_aside(self, name: str) -> Location:
        """Move a file out of ``data``, where no reader takes it for a shard and nothing overwrites it.

        Returns:
            Where it is now.
        """
        there = set((self.folder / "aside").names())
        number = next(number for number in itertools.count(1) if f"{name}.{number}" not in there)
        target = self.folder / "aside" / f"{name}.{number}"
        (self.data / name).move_to(target)
        return target

    def save(self) -> None:
        """Make the job's folder. Nothing is written where it is there: a job goes on also while its disk is full.

        Raises:
            UserError: the folder holds another job, or cannot be made.
        """
        file, record = self.folder / "job.json", f"{self.model_dump_json(indent=2)}\n".encode()
        try:
            self._check_folder()
            self.data.make_folder()
            self.staging.make_folder()
            if not file.exists() or file.read_bytes() != record:
                file.put(record)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be made ({error})", hint="choose another folder with --output"
            ) from None

    def _check_folder(self) -> None:
        if (self.folder.parent / "job.json").exists() and self.folder.name != REPEATED:
            raise UserError(
                f"{self.folder.parent} is the folder of a job",
                "--output takes the folder that holds the jobs' folders",
                f"try --output {self.folder.parent.parent}",
            )
        if (self.folder / "job.json").exists():
            other = load_job(self.folder)
            if other.identity != self.identity:
                differs = ", ".join(
                    f"{key} is {other.identity[key]!r} there and {value!r} here"
                    for key, value in self.identity.items()
                    if other.identity[key] != value
                )
                raise UserError(
                    f"{self.folder} belongs to another job ({differs})",
                    hint="choose another folder with --output",
                )


def load_job(folder: Location) -> Job:
    """The job in this folder; ``Job.folder`` says where it was found, should it have been moved.

    Raises:
        UserError: the folder holds no job, or one whose ``job.json`` was edited; or its object store does not answer.
    """
    file = folder / "job.json"
    try:
        job = Job.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} is no job ({first_fault(error)})") from None
    except (OSError, ValueError):  # a ValueError for a path with a NUL in it
        raise UserError(f"no job in {folder}", f"expected {file}", "see what is there: embedmill list") from None
    if job.due_id != job.id:
        raise UserError(
            f"{file} was edited: it describes job {job.due_id} and says that it is {job.id}",
            "a job's id is a hash over its job.json, and its shards carry that id",
            "undo the edit; for other settings run python -m producer --dataset … with them, which makes another job",
        )
    return job.model_copy(update={"folder": folder.absolute()})
