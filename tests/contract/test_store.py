"""Places in an object store, against a real S3 server."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow.parquet as pq
import pytest
import tenacity

from bench.buckets import BUCKET, a_user, client, credentials, s3_server
from contract.digest import digests_of
from contract.errors import UserError
from contract.job import load_job
from contract.jobs import find_job, latest_job
from contract.settings import settings
from contract.shard import commit, open_file, read_info, table_of
from contract.store import Location, StoreError, StoreRefuses, client as store_client, location
from contract.store.bucket import BucketPath
from contract.store.disk import DiskPath
from contract.vectors import RowVectors
from tests.contract.samples import a_batch, a_job, commit_by_hand, info_for

VECTORS = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    store_client.store_of.cache_clear()
    monkeypatch.setattr(store_client.patiently, "stop", tenacity.stop_after_attempt(1))
    yield
    store_client.store_of.cache_clear()


@pytest.fixture
def place(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> BucketPath:
    """An empty prefix of this test's own."""
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    return BucketPath(f"s3://{BUCKET}/{abs(hash(request.node.name))}")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/a/b", "gs://bucket/a b/ü", "s3://bucket/a/"])
def test_a_uri_is_an_object_path_and_its_text(uri: str) -> None:
    assert str(location(uri)) == uri.rstrip("/")


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a?endpoint_override=evil.example", "s3://key:secret@bucket/a", "s3://", "s3:///a", "http://host/a"],
)
def test_a_uri_that_says_more_than_a_place_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="expected s3://bucket/prefix"):
        location(uri)


def test_a_path_without_a_scheme_is_a_path() -> None:
    assert location("output") == DiskPath("output")
    with pytest.raises(ValueError, match="NUL"):
        location("out\0put")


def test_names_and_parents() -> None:
    path = BucketPath("s3://bucket") / "jobs" / "one"
    assert (path.name, str(path.parent), str(path.parent.parent)) == ("one", "s3://bucket/jobs", "s3://bucket")
    assert path.parent.parent.parent == BucketPath("s3://bucket")


def test_an_object_is_there_once_it_was_put_and_is_what_was_put(place: BucketPath, server: str) -> None:
    file = place / "a" / "b.bin"
    assert (file.exists(), file.modified(), place.names()) == (False, None, [])
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.put(b"old")
    file.put(b"new")
    assert file.read_bytes() == b"new"
    assert client(server).get_object(Bucket=BUCKET, Key=f"{place.name}/a/b.bin")["Body"].read() == b"new"
    assert abs((file.modified() or 0) - time.time()) < 60
    assert place.names() == ["a"]
    assert list((place / "a").entries()) == ["b.bin"]
    assert not (place / "a").exists()  # a prefix is no object
    file.unlink()
    assert not file.exists()


def test_a_large_object_is_whole_and_one_request(place: BucketPath, server: str) -> None:
    content = np.random.default_rng(0).bytes(12 * 2**20)
    (place / "large").put(content)
    assert (place / "large").read_bytes() == content
    tag = client(server).head_object(Bucket=BUCKET, Key=f"{place.name}/large")["ETag"]
    assert "-" not in tag  # a multipart upload's ends with -PARTS


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind."""
    return location(tmp_path / "folder") if request.param == "disk" else request.getfixturevalue("place")


def writes(content: bytes) -> Callable[[IO[bytes]], None]:
    def write(file: IO[bytes]) -> None:
        file.write(content)

    return write


def test_a_disk_and_a_bucket_do_the_same(folder: Location) -> None:
    file, staging = folder / "a" / "ü b.bin", folder / "staging"
    assert (folder.names(), folder.entries(), file.exists(), file.modified()) == ([], {}, False, None)
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    with pytest.raises(FileNotFoundError), file.reading():
        pass
    file.parent.make_folder()
    staging.make_folder()
    file.put(b"old")
    file.put(b"new, and longer")
    assert file.read_bytes() == b"new, and longer"
    assert not file.create(writes(b"late"), staging)
    assert (folder / "a" / "second").create(writes(b"12"), staging)
    assert sorted(file.parent.names()) == ["second", "ü b.bin"]
    assert {name: entry.size for name, entry in file.parent.entries().items()} == {"second": 2, "ü b.bin": 15}
    assert abs((file.modified() or 0) - time.time()) < 60
    assert abs(file.parent.entries()["second"].modified - time.time()) < 60
    with file.reading() as source:
        assert (source.size(), source.read(), source.read_at(4, 5)) == (15, b"new, and longer", b"and ")
    file.move_to(folder / "aside" / "one" / "ü b.bin")
    assert not file.exists()
    assert (folder / "aside" / "one" / "ü b.bin").read_bytes() == b"new, and longer"
    (folder / "a" / "second").unlink()
    (folder / "a" / "second").unlink()  # a missing one is no error
    assert file.parent.names() == staging.names() == []
    assert (file.name, file.parent.name, file.absolute().parent.parent) == ("ü b.bin", "a", folder.absolute())
    assert location(str(file)) == file
    assert hash(location(str(file))) == hash(file)


def test_of_many_writers_at_once_one_wins_and_its_content_is_there(folder: Location) -> None:
    file, staging = folder / "data" / "shard", folder / "staging"
    for place in (file.parent, staging):
        place.make_folder()
    contents = [bytes([65 + number]) * 300_000 for number in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        won = list(pool.map(lambda content: file.create(writes(content), staging), contents))
    assert won.count(True) == 1
    assert file.read_bytes() == contents[won.index(True)]
    assert file.parent.names() == ["shard"]
    assert staging.names() == []


def test_a_job_in_a_bucket_is_saved_found_and_followed(place: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_OUTPUT", str(place))
    settings.cache_clear()
    assert settings().output == place
    with pytest.raises(UserError, match="no job in s3://"):
        latest_job()
    job = a_job(settings().output, rows=10, batch_rows=4)
    job.save()
    assert str(job.folder) == f"{place}/{job.id}"
    assert job.folder.names() == ["job.json"]
    assert latest_job() == find_job(str(job.folder)) == find_job(job.id) == load_job(job.folder) == job
    assert job.committed() == set()
    commit(table_of(a_batch(), RowVectors.pooled(VECTORS), info_for(a_batch())), job.shard(1), job.staging)
    (job.data / "train-00007-of-00003.parquet").put(b"")
    assert job.committed() == set(job.written()) == {1}
    with pytest.raises(UserError, match=f"try --output {place}$"):
        a_job(job.folder, split="test").save()
    other = a_job(place, batch_rows=5).model_copy(update={"folder": job.folder})
    with pytest.raises(UserError, match="belongs to another job"):
        other.save()


def test_a_shard_in_a_bucket_is_the_one_that_was_committed_first(place: BucketPath) -> None:
    job = a_job(place, rows=18, batch_rows=4)
    table = table_of(a_batch(), RowVectors.pooled(VECTORS), info_for(a_batch()))
    assert commit(table, job.shard(0), job.staging)
    assert not commit_by_hand(job, replace(a_batch(), number=0))
    with open_file(job.shard(0)) as file:
        assert file.read().equals(table)
    assert read_info(job.shard(0)) == info_for(a_batch(), digests=digests_of(table))
    assert job.data.names() == [job.shard(0).name]
    whole = job.shard(0).read_bytes()
    assert job.set_aside(job.shard(0).name).read_bytes() == whole
    assert job.data.names() == []
    with pytest.raises(FileNotFoundError):
        read_info(job.shard(1))
    job.shard(1).put(b"PAR1 and no more")
    with pytest.raises(ValueError, match="Parquet"):
        read_info(job.shard(1))


def test_other_readers_read_a_bucket(place: BucketPath) -> None:
    job = a_job(place, rows=18, batch_rows=4)
    commit(table_of(a_batch(), RowVectors.pooled(VECTORS), info_for(a_batch())), job.shard(0), job.staging)
    assert pq.read_table(f"{job.data}/")["row_id"].to_pylist() == [14, 15, 16]


def test_a_bucket_that_is_not_there_is_named(place: BucketPath) -> None:
    with pytest.raises(UserError, match=r"there is no bucket for s3://nobody-made-this/.*make the bucket"):
        a_job(BucketPath("s3://nobody-made-this")).save()


def test_credentials_that_are_refused_are_what_the_user_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path, checked=True) as url:
        a_user(url)
        for name, value in credentials(url).items():
            monkeypatch.setenv(name, value)
        job = a_job(BucketPath(f"s3://{BUCKET}/jobs"))
        with pytest.raises(StoreRefuses, match=r"refuses s3://.*set the AWS_\* variables"):
            job.save()
        with pytest.raises(StoreRefuses, match=r"refuses s3://"):
            load_job(job.folder)


def test_a_store_that_does_not_answer_is_no_damaged_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as url:
        for name, value in credentials(url).items():
            monkeypatch.setenv(name, value)
        job = a_job(BucketPath(f"s3://{BUCKET}/jobs"))
        commit(table_of(a_batch(), RowVectors.pooled(VECTORS), info_for(a_batch())), job.shard(0), job.staging)
        assert read_info(job.shard(0)).rows == 3
    with pytest.raises(StoreError, match=r"does not answer for s3://.*run the same command again"):
        read_info(job.shard(0))


def test_no_credentials_at_all_are_told_of_at_once(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreRefuses, match=r"refuses s3://.*set the AWS_\* variables"):
        (BucketPath(f"s3://{BUCKET}") / "job.json").exists()


def test_a_profile_in_the_users_folder_is_taken(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    file = BucketPath(f"s3://{BUCKET}/profile/file")
    file.put(b"1")
    assert file.read_bytes() == b"1"


def test_nothing_asks_a_store_before_a_worker_has_forked() -> None:
    code = """
import worker.celery
from contract import settings
from contract.store import client
from contract.vectors import RowVectors
print(settings.settings().output, client.store_of.cache_info().currsize)
"""
    env = {"EMBEDMILL_OUTPUT": "s3://bucket/jobs", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["s3://bucket/jobs", "0"], done.stderr
