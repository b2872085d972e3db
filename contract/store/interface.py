"""What a job's folder and files must be able to do, wherever they lie."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO, NamedTuple, Protocol, Self

import pyarrow as pa

from contract.errors import UserError


class StoreError(UserError):
    """An object store that does not answer; waiting may help."""


class StoreRefuses(StoreError):
    """An object store that refuses; waiting does not help."""


class Entry(NamedTuple):
    """What a listing says of a file."""

    modified: float
    """When it was written, in seconds since the epoch; 0 for a folder in an object store."""
    size: int
    """Bytes."""


class Location(Protocol):
    """A file or a folder, on a disk (``DiskPath``) or in an object store (``BucketPath``).

    Every method that reads or writes raises ``OSError`` for what a disk refuses, ``StoreRefuses`` or ``StoreError`` for
    what an object store does.
    """

    @property
    def local(self) -> bool:
        """Whether it is on a file system of this machine: it may then be looked at in a process that forks later, where
        an object store's client may not be begun."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def parent(self) -> Self:
        """The folder that it lies in; a bucket's is the bucket itself."""
        ...

    def __truediv__(self, name: str) -> Self: ...

    def absolute(self) -> Self: ...

    def exists(self) -> bool:
        """Whether there is a file of this name; in an object store a folder is none."""
        ...

    def modified(self) -> float | None:
        """When the file was written, in seconds since the epoch; None where there is none."""
        ...

    def names(self) -> list[str]:
        """The names in this folder, in any order. A folder that is not there is empty."""
        ...

    def entries(self) -> dict[str, Entry]:
        """The names in this folder, with what the listing says of each."""
        ...

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def reading(self) -> AbstractContextManager[pa.NativeFile]:
        """The file, for reading parts of it.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def put(self, data: bytes) -> None:
        """Write the whole file, in place of any other: a reader sees the old one or the new one."""
        ...

    def create(self, write: Callable[[IO[bytes]], None], staging: Self) -> bool:
        """Write a file that is there in full or not at all, also if the power goes. The first writer wins; on a disk
        without hard links, the last one.

        Args:
            write: writes the content.
            staging: a folder of the same file system for the unfinished file; an object store needs none.

        Returns:
            Whether this call's file is there now, and not another's that was there first.
        """
        ...

    def make_folder(self) -> None:
        """Make this folder and those above it, where there are folders."""
        ...

    def move_to(self, target: Self) -> None:
        """Move the file, in place of any other; the target's folder is made."""
        ...

    def unlink(self) -> None:
        """Remove the file, if it is there."""
        ...
