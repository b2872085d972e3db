"""The hash of local files, which goes on while they are read."""

import os
from pathlib import Path

import pytest

from contract.errors import UserError
from producer import hashing as module
from producer.dataset import open_dataset
from producer.hashing import hash_of, hashing
from producer.library import cache_folder
from producer.texts import DatasetSource


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mills.csv"
    file.write_bytes(b"text\n" + os.urandom(100).hex().encode() * 30)
    return file


def test_each_byte_of_each_piece_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 1000)
    monkeypatch.setattr(module, "_CHUNK", 300)
    whole, found = file.read_bytes(), set()
    for position in (0, 999, 1000, 1999, 2500, len(whole) - 1):
        file.write_bytes(whole[:position] + b"!" + whole[position + 1 :])
        found.add(hash_of(file.parent, [file]))
    for content in (whole, whole[:-1], whole[:1000], whole[:999], b"", whole + b"\n"):
        file.write_bytes(content)
        assert hash_of(file.parent, [file]) == hash_of(file.parent, [file])
        found.add(hash_of(file.parent, [file]))
    assert len(found) == 12


def test_names_and_borders_of_files_count(tmp_path: Path) -> None:
    def of(**files: str) -> str:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        return hash_of(tmp_path, [tmp_path / name for name in files])

    assert len({of(a="12", b="3"), of(a="1", b="23"), of(a="12", c="3"), of(a="123"), of(a="123", b="")}) == 5


def test_a_file_that_changes_while_it_is_read_is_refused(file: Path) -> None:
    with hashing(file.parent, [file]) as revision:
        first = revision()
        file.write_bytes(file.read_bytes() + b"\n")
        with pytest.raises(UserError, match=r"mills\.csv was changed while it was read"):
            revision()
    assert hash_of(file.parent, [file]) != first


def test_another_file_of_the_same_name_is_another_in_the_cache(file: Path, tmp_path: Path) -> None:
    first = open_dataset(DatasetSource(str(file)))
    other = tmp_path / "other" / "mills.csv"
    other.parent.mkdir()
    other.write_text("text\nanother mill\n")
    assert open_dataset(DatasetSource(str(other))).texts(range(1)) == ["another mill"]
    assert open_dataset(DatasetSource(str(file))).texts(range(1)) == first.texts(range(1))
    cached = sorted(path.relative_to(cache_folder()).parts for path in cache_folder().rglob("*.arrow*"))
    assert [(len(parts), parts[-1].endswith(".arrow")) for parts in cached] == [(3, True)] * 2


def test_the_cache_is_where_the_library_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == Path(os.environ["HF_DATASETS_CACHE"])
    monkeypatch.delenv("HF_DATASETS_CACHE")
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "huggingface" / "datasets"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "huggingface" / "datasets"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "datasets"
