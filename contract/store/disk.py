"""Files and folders of this machine."""

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import PosixPath
from typing import IO

import pyarrow as pa

from contract.files import sync, sync_folder, write_atomically
from contract.store.interface import Entry

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


class DiskPath(PosixPath):
    """A ``pathlib.Path`` that is a ``Location``."""

    local = True

    def modified(self) -> float | None:
        return self.stat().st_mtime_ns / 1e9 if self.is_file() else None

    def names(self) -> list[str]:
        return os.listdir(self) if self.is_dir() else []

    def entries(self) -> dict[str, Entry]:
        found = {name: (self / name).stat() for name in self.names()}
        return {name: Entry(status.st_mtime, status.st_size) for name, status in found.items()}

    def reading(self) -> AbstractContextManager[pa.NativeFile]:
        return pa.OSFile(str(self))

    def put(self, data: bytes) -> None:
        write_atomically(self, data)

    def create(self, write: Callable[[IO[bytes]], None], staging: "DiskPath") -> bool:
        staged = staging / f"{self.stem}.{uuid.uuid4().hex}"
        try:
            with staged.open("wb") as file:
                write(file)
                file.flush()
                sync(file.fileno())
            created = self._link(staged)
        finally:
            staged.unlink(missing_ok=True)
        sync_folder(self.parent)
        return created

    def _link(self, staged: "DiskPath") -> bool:
        try:
            os.link(staged, self)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # Some network shares have none. The last writer wins there; its rows are equivalent.
            staged.replace(self)
        return True

    def make_folder(self) -> None:
        self.mkdir(parents=True, exist_ok=True)

    def move_to(self, target: "DiskPath") -> None:
        target.parent.make_folder()
        self.rename(target)

    def unlink(self, missing_ok: bool = True) -> None:
        super().unlink(missing_ok=missing_ok)
