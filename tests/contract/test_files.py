import hashlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from contract.files import sha256_of, sha256_of_folder, write_atomically

WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from contract.files import write_atomically
for turn in itertools.count():
    write_atomically(Path(sys.argv[1]), b"ab"[turn % 2 :][:1] * 300_000)
    if turn == 1:
        print("ready", flush=True)
"""


def test_the_hash_is_the_bytes_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mill" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"mill" * 100_000).hexdigest()


def test_a_text_replaces_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "nëw\n"):
        write_atomically(tmp_path / "file", text.encode())
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("milliseconds", [0, 3, 7])
def test_a_killed_writer_leaves_a_whole_text(milliseconds: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(file)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout as said:
        assert said.readline() == b"ready\n"
        try:
            writer.wait(milliseconds / 1000)
        except subprocess.TimeoutExpired:
            writer.kill()
        writer.wait()
    assert file.read_text() in ("a" * 300_000, "b" * 300_000)


def test_a_failed_write_leaves_the_old_text_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(file, b"new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_replacement_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomically(tmp_path / "taken", b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folders_hash_is_of_every_name_and_byte_in_it(tmp_path: Path) -> None:
    def made(files: dict[str, bytes]) -> str:
        folder = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return sha256_of_folder(folder)

    files = {"modules.json": b"[]", "0_Transformer/config.json": b"{}"}
    assert made(files) == made(dict(reversed(files.items())))
    for other in (
        files | {"modules.json": b"[ ]"},
        files | {"1_Dense/x.py": b""},
        {"modules.json": b"[]", "config.json": b"{}"},
    ):
        assert made(other) != made(files)
