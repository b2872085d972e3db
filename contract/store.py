"""Where jobs lie: on a disk, or in an object store that pyarrow has a file system for.

A place on a disk is a ``pathlib.Path``. A place in an object store is an ``ObjectPath``, which has of a path what a
job's folder needs. Credentials, region and endpoint are the usual variables (``AWS_*``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``); nothing here reads them.
"""

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, Self, TypeVar

import pyarrow as pa
import tenacity
from pyarrow import fs
from pydantic import PlainSerializer, PlainValidator

from contract.errors import UserError

_URI = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]+(/[^/?#\0]+)*")
"""No query: it could send the credentials to another endpoint, and a job's folder comes out of Redis."""

_NEARLY_URI = re.compile(r"(s3|gs):|[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
"""A slash too few: no folder of such a name is meant."""

_PATIENCE = 30.0
"""Seconds for which a call tries again while an object store does not answer."""

_STORES = re.compile(r"AWS Error|google::cloud")
"""What every error of an object store has in it, and no error of a Parquet file."""

_REFUSED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|EXPIRED_TOKEN"
    "|HTTP status 4(?!08|29)|PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND|INVALID_ARGUMENT"
)
"""Errors that stay however long one waits."""

_log = logging.getLogger("embedmill.store")

_Result = TypeVar("_Result")


class StoreError(UserError):
    """An object store that refuses, or does not answer."""


class Entry(NamedTuple):
    """What a listing says of a file."""

    modified: float
    """When it was written, in seconds since the epoch; 0 for a folder in an object store."""
    size: int
    """Bytes."""


class ObjectPath:
    """A place in an object store.

    Args:
        uri: ``s3://bucket/prefix`` or ``gs://bucket/prefix``, with nothing after it.

    Raises:
        ValueError: it is no such URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        if not _URI.fullmatch(self.uri):
            raise ValueError(f"expected s3://bucket/prefix or gs://bucket/prefix, found {uri}")

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"ObjectPath({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(f"{self.uri}/{name.strip('/')}")

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        """What it lies in; a bucket's parent is the bucket."""
        above = self.uri.rpartition("/")[0]
        return self if above.endswith("/") else ObjectPath(above)

    def absolute(self) -> Self:
        return self

    def exists(self) -> bool:
        """Whether there is an object of this name."""
        return self._ask(lambda store, path: store.get_file_info(path).type == fs.FileType.File)

    def modified(self) -> float | None:
        """When the object was written, in seconds since the epoch; None where there is none."""
        return self._ask(lambda store, path: store.get_file_info(path).mtime_ns or 0) / 1e9 or None

    def read_bytes(self) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is none.
        """

        def read(store: fs.FileSystem, path: str) -> bytes:
            with store.open_input_stream(path) as file:
                return file.read()

        return self._ask(read)

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Put the whole object: it is there once it is complete, in place of any other.

        S3 gets a shard in one PUT; some 10 MB and more in a multipart upload, which is as invisible until its end.
        """

        def write(store: fs.FileSystem, path: str) -> None:
            with store.open_output_stream(path) as file:
                file.write(data)

        self._ask(write)

    def unlink(self) -> None:
        self._ask(lambda store, path: store.delete_file(path))

    def entries(self) -> dict[str, "Entry"]:
        """What lies right below this one, by name."""
        found = self._ask(lambda store, path: store.get_file_info(fs.FileSelector(path, allow_not_found=True)))
        return {info.base_name: Entry((info.mtime_ns or 0) / 1e9, info.size or 0) for info in found}

    @contextmanager
    def open(self) -> Iterator[pa.NativeFile]:
        """The object, for reading parts of it. A store's error in the ``with`` block becomes a ``StoreError``.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._ask(lambda store, path: store.open_input_file(path)) as file:
            try:
                yield file
            except OSError as error:
                if _STORES.search(str(error)):
                    raise self._error(error) from None
                raise

    def _ask(self, question: Callable[[fs.FileSystem, str], _Result]) -> _Result:
        scheme, _, path = self.uri.partition("://")
        try:
            return _patiently(lambda: question(_file_system(scheme, path.split("/")[0]), path))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> StoreError:
        says = " ".join(str(error).split())[:300]
        variables = "AWS_* variables" if self.uri.startswith("s3:") else "GOOGLE_APPLICATION_CREDENTIALS"
        if "NO_SUCH_BUCKET" in says:
            return StoreError(f"there is no bucket for {self} ({says})", mend="make the bucket, or choose another")
        if _REFUSED.search(says):
            mend = f"set the {variables} to credentials that may list, read and write there"
            return StoreError(f"the object store refuses {self} ({says})", mend=mend)
        mend = "see that it can be reached (AWS_ENDPOINT_URL), and run the same command again: nothing is lost"
        return StoreError(f"the object store does not answer for {self} ({says})", mend=mend)


def location(given: "str | Path | ObjectPath") -> Path | ObjectPath:
    """A path, or an object store's URI, as a user writes it.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str) and "://" in given:
        return ObjectPath(given)
    if isinstance(given, str) and _NEARLY_URI.match(given):
        raise ValueError(f"expected s3://bucket/prefix, gs://bucket/prefix or a path, found {given}")
    if isinstance(given, ObjectPath):
        return given
    if not isinstance(given, str | Path) or "\0" in str(given):
        raise ValueError("expected a path, without a NUL in it")
    return Path(given)


Location = Annotated[Path | ObjectPath, PlainValidator(location), PlainSerializer(str)]
"""A place on a disk or in an object store; in JSON, its text."""


def names(folder: Path | ObjectPath) -> list[str]:
    """The names in a folder. A folder that is not there is empty.

    One listing: an object store is asked once for each thousand names.
    """
    if isinstance(folder, ObjectPath):
        return list(folder.entries())
    return os.listdir(folder) if folder.is_dir() else []


def entries(folder: Path | ObjectPath) -> dict[str, Entry]:
    """As ``names``, with what the listing says of each."""
    if isinstance(folder, ObjectPath):
        return folder.entries()
    found = {name: (folder / name).stat() for name in names(folder)}
    return {name: Entry(status.st_mtime, status.st_size) for name, status in found.items()}


def modified(file: Path | ObjectPath) -> float | None:
    """When a file was written, in seconds since the epoch; None where there is none."""
    if isinstance(file, ObjectPath):
        return file.modified()
    return file.stat().st_mtime_ns / 1e9 if file.is_file() else None


def move(file: Path | ObjectPath, target: Path | ObjectPath) -> Path | ObjectPath:
    """Move a file; an object store is asked to take a copy and then to delete the old one.

    Returns:
        The target.
    """
    if isinstance(file, ObjectPath) or isinstance(target, ObjectPath):
        target.write_bytes(file.read_bytes())
        file.unlink()
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    return target


@functools.cache
def _file_system(scheme: str, bucket: str) -> fs.FileSystem:
    """Made on first use, so never in a process that forks workers: the AWS SDK's threads would be missing there."""
    # Without allow_delayed_open every object would be a multipart upload, of three requests at least.
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}" + ("?allow_delayed_open=true" if scheme == "s3" else ""))[0]


def _passes(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and not _REFUSED.search(str(error))


def _say_waiting(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1:
        error = state.outcome and state.outcome.exception()
        _log.warning("the object store does not answer (%s); trying again", error)


_patiently = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_passes),
    wait=tenacity.wait_exponential(multiplier=0.5, max=5),
    stop=tenacity.stop_after_delay(_PATIENCE),
    before_sleep=_say_waiting,
    reraise=True,
)
