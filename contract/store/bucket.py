"""Objects of an object store: S3, or what speaks its protocol, and Google Cloud Storage, through obstore.

Credentials, region and endpoint are the usual variables (``AWS_*``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``); profiles in ``~/.aws`` are read by boto3, where that is installed.
"""

import functools
import io
import logging
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import obstore
import obstore.store
import pyarrow as pa
import tenacity
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

from contract.store.interface import Entry, StoreError, StoreRefuses

_URI = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]+(/[^/?#\0]+)*")
"""No query: it could send the credentials to another endpoint, and a job's folder comes out of Redis."""

_PATIENCE = 30.0
"""Seconds for which a call tries again while an object store does not answer."""

_REFUSED = re.compile(r"status code: 4(?!08|29)\d\d|169\.254\.169\.254|Missing \w+Key|credential", re.IGNORECASE)
"""An HTTP status that stays however long one waits; or no credentials, for which the cloud's own machine was asked."""

_TIMES = {"timeout": "30s", "connect_timeout": "5s"}

_GIVES_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
}

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
        return self._ask(lambda store, key: obstore.get(store, key).bytes().to_bytes())

    def read_range(self, start: int, length: int) -> memoryview:
        """Part of the object: ``length`` bytes from ``start`` on, both in bytes."""
        return memoryview(self._ask(lambda store, key: obstore.get_range(store, key, start=start, length=length)))

    def reading(self) -> AbstractContextManager[pa.NativeFile]:
        return pa.PythonFile(_Ranges(self, self.size()), "r")

    def put(self, data: bytes) -> None:
        self._write(data, "overwrite")

    def create(self, write: Callable[[IO[bytes]], None], staging: "BucketPath") -> bool:
        whole = io.BytesIO()
        write(whole)
        try:
            self._write(whole.getvalue(), "create")
        except AlreadyExistsError:
            return False
        return True

    def make_folder(self) -> None:
        """Nothing to do: an object's prefix needs no making."""

    def move_to(self, target: "BucketPath") -> None:
        target.put(self.read_bytes())  # and not the store's own copy, which some refuse across keys' encryption
        self.unlink()

    def unlink(self, missing_ok: bool = False) -> None:
        self._ask(obstore.delete)

    def _write(self, data: bytes, mode: Any) -> None:
        """In one request, so that the object is there once it is complete."""
        try:
            self._ask(lambda store, key: obstore.put(store, key, data, mode=mode, use_multipart=False))
        except FileNotFoundError:
            raise StoreRefuses(f"there is no bucket for {self}", hint="make the bucket, or choose another") from None

    def _ask(self, question: Callable[[Any, str], _Result]) -> _Result:
        scheme, _, path = self.uri.partition("://")
        bucket, _, key = path.partition("/")
        try:
            return _patiently(lambda: question(_store(scheme, bucket), key))
        except BaseError as error:
            if isinstance(error, AlreadyExistsError):
                raise
            raise self._error(error) from None

    def _error(self, error: BaseError) -> StoreError:
        answer = " ".join(str(error).partition("Debug source")[0].split())[:300]
        if "NoSuchBucket" in str(error):
            return StoreRefuses(f"there is no bucket for {self} ({answer})", hint="make the bucket, or choose another")
        if _refuses(error):
            variables = "AWS_* variables" if self.uri.startswith("s3:") else "GOOGLE_APPLICATION_CREDENTIALS"
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
        length = max(0, min(len(buffer), self._size - self._at))
        if length:
            buffer[:length] = self._path.read_range(self._at, length)
            self._at += length
        return length


@functools.cache
def _store(scheme: str, bucket: str) -> Any:
    """Made on first use, so never in a process that forks workers: the client's threads would be missing there."""
    retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=_PATIENCE)}  # ours are told in the log
    options: dict[str, Any] = {"client_options": {"allow_http": True, **_TIMES}, "retry_config": retries}
    if scheme == "s3" and not os.environ.keys() & _GIVES_CREDENTIALS and _has_profiles():
        try:
            from obstore.auth.boto3 import Boto3CredentialProvider
        except ImportError:
            raise StoreRefuses(
                "the credentials in ~/.aws are read by boto3, which is not installed",
                hint="pip install boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ) from None
        options["credential_provider"] = Boto3CredentialProvider()
    return obstore.store.from_url(f"{scheme}://{bucket}", **options)


def _has_profiles() -> bool:
    files = (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config"))
    return any(Path(os.environ.get(name, default)).expanduser().is_file() for name, default in files)


def _refuses(error: BaseException) -> bool:
    return isinstance(error, PermissionDeniedError | UnauthenticatedError) or bool(_REFUSED.search(str(error)))


def _passes(error: BaseException) -> bool:
    return isinstance(error, BaseError) and not isinstance(error, AlreadyExistsError) and not _refuses(error)


def _say_waiting(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1:
        error = state.outcome and state.outcome.exception()
        _log.warning("the object store does not answer (%s); trying again", str(error).partition("\n")[0])


_patiently = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_passes),
    wait=tenacity.wait_exponential(multiplier=0.5, max=5),
    stop=tenacity.stop_after_delay(_PATIENCE),
    before_sleep=_say_waiting,
    reraise=True,
)
