"""Objects of an object store: S3, or what speaks its protocol, and Google Cloud Storage, through obstore."""

import contextlib
import io
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO, Any, Self, TypeVar

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError

from contract.store.client import patiently, store_of, timeout
from contract.store.interface import Entry, StoreRefuses
from contract.store.refusals import bare, error_of

_URI = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]+(/(?!\.{1,2}(/|$))[^/?#\x00-\x1f]+)*")
"""No query: it could send the credentials to another endpoint, and a job's folder comes out of Redis."""

_SLICE = 8 * 2**20
"""Most bytes that one request reads."""

_CONFLICTS = 5
"""How often a conditional write is tried again that collided with another one's."""

_BUFFER = 64 * 1024
"""Bytes that a small read fetches: a Parquet file's footer fits."""

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
            raise error_of(error, self.uri) from None

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
        raise error_of(conflict, self.uri)

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
            store = store_of(scheme, bucket, timeout(size))
        except BaseError as error:
            raise error_of(error, self.uri) from None
        except Exception as error:  # boto3's errors, and whatever a wrong variable raises
            hint = "correct what the variables and files for credentials say"
            raise StoreRefuses(f"no client for {self} ({bare(error)})", hint=hint) from None
        try:
            return patiently(lambda: question(store, key))
        except AlreadyExistsError:
            raise
        except BaseError as error:
            raise error_of(error, self.uri) from None


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
