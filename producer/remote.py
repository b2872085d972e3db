"""Files behind an address, http(s):// or s3://, brought into the cache."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from contract.entry import importing
from contract.errors import UserError, reason
from contract.store.bucket import BucketPath
from contract.store.interface import Entry
from contract.words import count
from producer.library import cache_folder

SCHEMES = ("http://", "https://", "s3://", "gs://")
_CHUNK = 1 << 20


def downloaded(address: str) -> Path:
    """The file, or for an object store the file or folder, behind an address, on this disk.

    An http address is asked each time; of an object store only what has changed is fetched again.

    Raises:
        UserError: it cannot be had.
    """
    target = cache_folder() / "embedmill" / "remote" / hashlib.sha256(address.encode()).hexdigest()
    try:
        target.mkdir(parents=True, exist_ok=True)
        return _over_http(address, target) if address.startswith("http") else _out_of_store(address, target)
    except (OSError, ValueError) as error:  # those of requests are OSErrors
        raise UserError(
            f"{address} cannot be fetched ({reason(error)})",
            "expected a file that can be read",
            "see that it can be reached, or download it and name the file",
        ) from None


def _over_http(address: str, target: Path) -> Path:
    with importing():
        import requests
    name = PurePosixPath(unquote(urlsplit(address).path)).name or "data"
    with requests.get(address, stream=True, timeout=60, headers={"Accept-Encoding": "identity"}) as answer:
        answer.raise_for_status()
        size = int(answer.headers.get("Content-Length", 0)) or None
        _save(answer.raw, target / name, size)
    return target / name


def _out_of_store(address: str, target: Path) -> Path:
    path = BucketPath(address)
    if path.exists():
        entry = path.parent.entries()[path.name]
        _fetch(path, target / path.name, entry)
        return target / path.name
    found = dict(_below(path, PurePosixPath()))
    if not found:
        raise ValueError("there is no object of this name, nor below it")
    folder = target / path.name
    for stale in [file for file in folder.rglob("*") if file.is_file()]:
        if PurePosixPath(stale.relative_to(folder)) not in found:
            stale.unlink()
    for name, entry in found.items():
        _fetch(path / str(name), folder / name, entry)
    return folder


def _below(path: BucketPath, prefix: PurePosixPath) -> Iterator[tuple[PurePosixPath, Entry]]:
    for name, entry in path.entries().items():
        if entry.modified:
            yield prefix / name, entry
        else:
            yield from _below(path / name, prefix / name)


def _fetch(path: BucketPath, target: Path, entry: Entry) -> None:
    if target.is_file() and (target.stat().st_size, target.stat().st_mtime) == (entry.size, entry.modified):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.reading() as source:
        _save(source, target, entry.size)
    os.utime(target, (entry.modified, entry.modified))


def _save(source: IO[bytes] | Any, target: Path, size: int | None) -> None:
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with (
            staged.open("wb") as file,
            tqdm(total=size, unit="B", unit_scale=True, desc=f"Fetching {target.name}", disable=None) as bar,
        ):
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if size is not None and staged.stat().st_size != size:
            raise OSError(f"{staged.stat().st_size:,} of {count(size, 'byte')} came")
        shutil.move(staged, target)
    finally:
        staged.unlink(missing_ok=True)
