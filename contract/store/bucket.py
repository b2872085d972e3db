"""Objects of an object store: S3, or what speaks its protocol, and Google Cloud Storage, through obstore.

Credentials, region and endpoint are the usual variables (``AWS_*``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``); profiles in ``~/.aws`` are read by boto3, where that is installed.
"""

import contextlib
import functools
import io
import logging
import math
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import IO, Any, Self, TypeVar

import obstore
import obstore.store
import pyarrow as pa
import tenacity
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

from contract.store.interface import Entry, StoreError, StoreRefuses

_URI = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]+(/(?!\.{1,2}(/|$))[^/?#\x00-\x1f]+)*")
"""No query: it could send the credentials to another endpoint, and a job's folder comes out of Redis."""

_PATIENCE = 30.0
"""Seconds for which a call tries again, at least once, while an object store does not answer."""

_REQUEST_SECONDS = 30.0
"""Of one request that carries next to nothing."""

_SLOWEST = 250_000
"""Bytes a second of the slowest connection on which a large object still arrives."""

_SLICE = 8 * 2**20
"""Most bytes that one request reads."""

_CONFLICTS = 5
"""How often a conditional write is tried again that collided with another one's."""

_REFUSED = re.compile(r"status code: (3\d\d|501|4(?!08|29)\d\d)|Missing \w+|credential", re.IGNORECASE)
"""An HTTP status that stays however long one waits, or no credentials; read in what ``_bare`` leaves of an error."""

_REDIRECTED = re.compile(r"status code: 3\d\d|redirect", re.IGNORECASE)
"""The bucket is in another region."""

_METADATA_SERVER = re.compile(r"https?://(169\.254\.|metadata\.google\.internal|\[fd00:ec2::254\])")
"""Asked for credentials where no variable has them: outside of a cloud it does not answer."""

_GIVES_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
}

_REGION = {"AWS_REGION", "AWS_DEFAULT_REGION"}

_BUFFER = 64 * 1024
"""Bytes that a small read fetches: a Parquet file's footer fits."""

_log = logging.getLogger("embedmill.store")

_Result = TypeVar("_Result")


class BucketPath:
    """An object, or a prefix of objects, in an object store.

    Args:
        uri: ``s3://bucket/prefix`` or ``gs://bucket/prefix``, with nothing after it.

    Raises:
        ValueError: it is no such URI.
    """

    local = False

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        if not _URI.fullmatch(self.uri):
            raise ValueError(f"expected s3://bucket/prefix or gs://bucket/prefix, found {uri}")

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"BucketPath({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __truediv__(self, name: str) -> "BucketPath":
        return BucketPath(f"{self.uri}/{name.strip('/')}")

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> "BucketPath":
        above = self.uri.rpartition("/")[0]
        return self if above.endswith("/") else BucketPath(above)

    def absolute(self) -> Self:
        return self

    def exists(self) -> bool:
        return self.modified() is not None

    def modified(self) -> float | None:
        try:
            return self._ask(obstore.head)["last_modified"].timestamp()
        except FileNotFoundError:
            return None

    def size(self) -> int:
        """Bytes of the object.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._ask(obstore.head)["size"]

    def names(self) -> list[str]:
        return list(self.entries())

    def entries(self) -> dict[str, Entry]:
        """One request for each thousand names."""
        found = self._ask(lambda store, key: obstore.list_with_delimiter(store, f"{key}/" if key else None))
        folders = {prefix.rpartition("/")[2]: Entry(0.0, 0) for prefix in found["common_prefixes"]}
        objects = {
            one["path"].rpartition("/")[2]: Entry(one["last_modified"].timestamp(), one["size"])
            for one in found["objects"]
        }
        return folders | objects

    def read_bytes(self) -> bytes:
        with self.reading() as file:
            return file.read()

    def read_range(self, start: int, length: int) -> memoryview:
        """Part of the object: ``length`` bytes from ``start`` on, both in bytes."""
        read = self._ask(lambda store, key: obstore.get_range(store, key, start=start, length=length), size=length)
        return memoryview(read)

    def reading(self) -> AbstractContextManager[pa.NativeFile]:
        return pa.PythonFile(io.BufferedReader(_Ranges(self, self.size()), _BUFFER), "r")

    def put(self, data: bytes) -> None:
        try:
            self._write(data, "overwrite")
        except AlreadyExistsError as error:  # a conflict, which a store may answer at any time
            raise self._error(error) from None

    def create(self, write: Callable[[IO[bytes]], None], staging: "BucketPath") -> bool:
        whole = io.BytesIO()
        write(whole)
        data = whole.getvalue()
        for attempt in range(_CONFLICTS):
            try:
                self._write(data, "create")
                return True
            except AlreadyExistsError as error:
                conflict = error
            with contextlib.suppress(FileNotFoundError):
                # The same bytes are this call's own: the answer to an earlier request was lost.
                return self.size() == len(data) and self.read_bytes() == data
            time.sleep(0.1 * 2**attempt)  # another write was under way and did not come to its end
        raise self._error(conflict)

    def make_folder(self) -> None:
        """Nothing to do: an object's prefix needs no making."""

    def move_to(self, target: "BucketPath") -> None:
        target.put(self.read_bytes())  # and not the store's own copy, which some refuse across keys' encryption
        self.unlink()

    def unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # also after a lost answer
            self._ask(obstore.delete)

    def _write(self, data: bytes, mode: Any) -> None:
        """In one request, so that the object is there once it is complete."""
        try:
            self._ask(lambda store, key: obstore.put(store, key, data, mode=mode, use_multipart=False), size=len(data))
        except FileNotFoundError:
            raise StoreRefuses(f"there is no bucket for {self}", hint="make the bucket, or choose another") from None

    def _ask(self, question: Callable[[Any, str], _Result], size: int = 0) -> _Result:
        """Ask the store.

        Args:
            question: takes obstore's store and the key.
            size: bytes that the request carries.

        Raises:
            FileNotFoundError: there is no such object; of a write, no such bucket.
            AlreadyExistsError: of a write: there is an object, or a conflict with another write.
            StoreRefuses: waiting does not help.
            StoreError: the store does not answer.
        """
        scheme, _, path = self.uri.partition("://")
        bucket, _, key = path.partition("/")
        try:
            store = _store(scheme, bucket, _timeout(size))
        except BaseError as error:
            raise self._error(error) from None
        except Exception as error:  # boto3's errors, and whatever a wrong variable raises
            hint = "correct what the variables and files for credentials say"
            raise StoreRefuses(f"no client for {self} ({_bare(error)})", hint=hint) from None
        try:
            return _patiently(lambda: question(store, key))
        except BaseError as error:
            if isinstance(error, AlreadyExistsError):
                raise
            raise self._error(error) from None

    def _error(self, error: BaseError) -> StoreError:
        answer = _bare(error)
        if "NoSuchBucket" in str(error):
            return StoreRefuses(f"there is no bucket for {self} ({answer})", hint="make the bucket, or choose another")
        if _REDIRECTED.search(answer):
            hint = "set AWS_REGION to the bucket's region"
            return StoreRefuses(f"{self} is in another region ({answer})", hint=hint)
        if _refuses(error):
            s3 = "AWS_* variables, or install boto3 for profiles in ~/.aws,"
            variables = s3 if self.uri.startswith("s3:") else "variable GOOGLE_APPLICATION_CREDENTIALS"
            hint = f"set the {variables} to credentials that may list, read and write there"
            return StoreRefuses(f"the object store refuses {self} ({answer})", hint=hint)
        hint = "see that it can be reached (AWS_ENDPOINT_URL), and run the same command again: nothing is lost"
        return StoreError(f"the object store does not answer for {self} ({answer})", hint=hint)


class _Ranges(io.RawIOBase):
    """An object as a seekable file, each read a request."""

    def __init__(self, path: BucketPath, size: int) -> None:
        self._path, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), _SLICE, self._size - self._at))
        if length:
            buffer[:length] = self._path.read_range(self._at, length)
            self._at += length
        return length


@functools.cache
def _store(scheme: str, bucket: str, timeout: float) -> Any:
    """obstore's store. Made on first use, so never in a process that forks workers: its threads would be missing there.

    Args:
        scheme: ``s3`` or ``gs``.
        bucket: the bucket's name.
        timeout: seconds that one request may take in all.
    """
    retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=_PATIENCE)}  # ours are told in the log
    client = {"allow_http": True, "timeout": timedelta(seconds=timeout), "connect_timeout": "5s"}
    options: dict[str, Any] = {"client_options": client, "retry_config": retries}
    if scheme == "s3":
        options |= _of_profile()
    return obstore.store.from_url(f"{scheme}://{bucket}", **options)


def _of_profile() -> dict[str, Any]:
    """Credentials and region of the user's profile in ``~/.aws``, for what no variable says; empty without boto3, or
    where it finds none."""
    if "AWS_ACCESS_KEY_ID" in os.environ and os.environ.keys() & _REGION:
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session, options = boto3.Session(), dict[str, Any]()
    if not os.environ.keys() & _REGION and session.region_name:
        options["region"] = session.region_name
    if not os.environ.keys() & _GIVES_CREDENTIALS and session.get_credentials() is not None:
        # Asked again well before temporary credentials expire; boto3 keeps them as long as they are good.
        options["credential_provider"] = Boto3CredentialProvider(session, ttl=timedelta(minutes=10))
    return options


def _timeout(size: int) -> float:
    """Seconds for a request with this many bytes: 30, 60, 120, … so that few clients serve all sizes."""
    needed = _REQUEST_SECONDS + size / _SLOWEST
    return _REQUEST_SECONDS * 2 ** math.ceil(math.log2(needed / _REQUEST_SECONDS))


def _bare(error: BaseException) -> str:
    """What an error says in one line, without URLs, names of objects and Rust's own details."""
    text = str(error).partition("Debug source")[0]
    text = re.sub(r"https?://\S+|(?<=for path )\S+|(?<=at location )\S+", "…", text)
    return " ".join(text.split())[:300] or type(error).__name__


def _refuses(error: BaseException) -> bool:
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return True
    if "RequestTimeout" in str(error):  # status 400, of an upload that was too slow
        return False
    return bool(_REFUSED.search(_bare(error)) or _METADATA_SERVER.search(str(error)))


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, BaseError) and not isinstance(error, AlreadyExistsError) and not _refuses(error)


def _log_waiting(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome and (error := state.outcome.exception()):
        _log.warning("the object store does not answer (%s); trying again", _bare(error))


_patiently = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_may_pass),
    wait=tenacity.wait_exponential(multiplier=0.5, max=5),
    stop=tenacity.stop_after_delay(_PATIENCE) & tenacity.stop_after_attempt(2),
    before_sleep=_log_waiting,
    reraise=True,
)
