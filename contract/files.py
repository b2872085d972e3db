"""Files that are either wholly there or not there, and hashes of files."""

import hashlib
import os
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(folder: Path) -> str:
    """A hash over the names and the bytes of all files in a folder, and in those below it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\n{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that a reader, or an interruption, sees the old one or the new one."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staging.open("wb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    sync_folder(path.parent)


def as_umask_says(*files: Path) -> None:
    """Give files the permissions that a new file has. Those that safetensors writes are for their owner alone, and a
    worker of another user could not load them."""
    umask = os.umask(0)
    os.umask(umask)
    for file in files:
        file.chmod(0o666 & ~umask)


def sync(descriptor: int) -> None:
    """Have the disk take a file's bytes before anything refers to them."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the disk take a folder's entries: without it a renamed file may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
