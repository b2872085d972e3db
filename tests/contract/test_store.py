"""Places in an object store, against a real S3 server."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tenacity

from contract import store
from contract.digest import digests_of
from contract.errors import UserError
from contract.job import find_job, latest_job, load_job
from contract.settings import settings
from contract.shard import commit, open_file, read_info, table_of
from contract.store import ObjectPath, StoreError, entries, location, modified, names
from tests.buckets import BUCKET, client, credentials, s3_server
from tests.contract.samples import a_batch, a_job, commit_by_hand, info_for

VECTORS = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    store._file_system.cache_clear()
    monkeypatch.setattr(store._patiently, "stop", tenacity.stop_after_attempt(1))
    yield
    store._file_system.cache_clear()


@pytest.fixture
def place(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ObjectPath:
    """An empty prefix of this test's own."""
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    return ObjectPath(f"s3://{BUCKET}/{abs(hash(request.node.name))}")


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
    assert location("output") == Path("output")
    with pytest.raises(ValueError, match="NUL"):
        location("out\0put")


def test_names_and_parents() -> None:
    path = ObjectPath("s3://bucket") / "jobs" / "one"
    assert (path.name, str(path.parent), str(path.parent.parent)) == ("one", "s3://bucket/jobs", "s3://bucket")
    assert path.parent.parent.parent == ObjectPath("s3://bucket")


def test_an_object_is_there_once_it_was_put_and_is_what_was_put(place: ObjectPath, server: str) -> None:
    file = place / "a" / "b.bin"
    assert (file.exists(), modified(file), names(place)) == (False, None, [])
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    file.write_bytes(b"old")
    file.write_bytes(b"new")
    assert file.read_bytes() == b"new"
    assert client(server).get_object(Bucket=BUCKET, Key=f"{place.name}/a/b.bin")["Body"].read() == b"new"
    assert abs((modified(file) or 0) - time.time()) < 60
    assert names(place) == ["a"]
    assert list(entries(place / "a")) == ["b.bin"]
    assert not (place / "a").exists()  # a prefix is no object
    file.unlink()
    assert not file.exists()


@pytest.mark.parametrize(("megabytes", "parts"), [(4, 0), (12, 2)])
def test_an_object_is_whole_however_many_requests_it_takes(
    megabytes: int, parts: int, place: ObjectPath, server: str
) -> None:
    content = np.random.default_rng(0).bytes(megabytes * 2**20)
    (place / "large").write_bytes(content)
    assert (place / "large").read_bytes() == content
    tag = client(server).head_object(Bucket=BUCKET, Key=f"{place.name}/large")["ETag"].strip('"')
    assert (int(tag.partition("-")[2]) if parts else "-" in tag) == parts  # a multipart upload's ends with -PARTS


def test_a_job_in_a_bucket_is_saved_found_and_followed(place: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_OUTPUT", str(place))
    settings.cache_clear()
    assert settings().output == place
    with pytest.raises(UserError, match="no job in s3://"):
        latest_job()
    job = a_job(settings().output, rows=10, batch_rows=4)
    job.save()
    assert str(job.folder) == f"{place}/{job.id}"
    assert names(job.folder) == ["job.json"]
    assert latest_job() == find_job(str(job.folder)) == find_job(job.id) == load_job(job.folder) == job
    assert job.committed() == set()
    commit(table_of(a_batch(), VECTORS, info_for(a_batch()), per_token=False), job.shard(1), job.staging)
    (job.data / "train-00007-of-00003.parquet").write_bytes(b"")
    assert job.committed() == set(job.written()) == {1}
    with pytest.raises(UserError, match=f"try --output {place}$"):
        a_job(job.folder, split="test").save()
    other = a_job(place, batch_rows=5).model_copy(update={"folder": job.folder})
    with pytest.raises(UserError, match="belongs to another job"):
        other.save()


def test_a_shard_in_a_bucket_is_the_one_that_was_committed_first(place: ObjectPath) -> None:
    job = a_job(place, rows=18, batch_rows=4)
    table = table_of(a_batch(), VECTORS, info_for(a_batch()), per_token=False)
    assert commit(table, job.shard(0), job.staging)
    assert not commit_by_hand(job, replace(a_batch(), number=0))
    with open_file(job.shard(0)) as file:
        assert file.read().equals(table)
    assert read_info(job.shard(0)) == info_for(a_batch(), digests=digests_of(table))
    assert names(job.data) == [job.shard(0).name]
    whole = job.shard(0).read_bytes()
    assert job.set_aside(job.shard(0).name).read_bytes() == whole
    assert names(job.data) == []
    with pytest.raises(FileNotFoundError):
        read_info(job.shard(1))
    job.shard(1).write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="Parquet"):
        read_info(job.shard(1))


def test_other_readers_read_a_bucket(place: ObjectPath) -> None:
    job = a_job(place, rows=18, batch_rows=4)
    commit(table_of(a_batch(), VECTORS, info_for(a_batch()), per_token=False), job.shard(0), job.staging)
    assert pq.read_table(f"{job.data}/")["row_id"].to_pylist() == [14, 15, 16]


def test_a_bucket_that_is_not_there_is_named(place: ObjectPath) -> None:
    with pytest.raises(UserError, match=r"there is no bucket for s3://nobody-made-this/.*make the bucket"):
        a_job(ObjectPath("s3://nobody-made-this")).save()


def test_credentials_that_are_refused_are_what_the_user_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path, checked=True) as url:
        for name, value in credentials(url).items():
            monkeypatch.setenv(name, value)
        job = a_job(ObjectPath(f"s3://{BUCKET}/jobs"))
        with pytest.raises(UserError, match=r"refuses s3://.*set the AWS_\* variables"):
            job.save()
        with pytest.raises(UserError, match=r"refuses s3://"):
            load_job(job.folder)


def test_a_store_that_does_not_answer_is_no_damaged_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as url:
        for name, value in credentials(url).items():
            monkeypatch.setenv(name, value)
        job = a_job(ObjectPath(f"s3://{BUCKET}/jobs"))
        commit(table_of(a_batch(), VECTORS, info_for(a_batch()), per_token=False), job.shard(0), job.staging)
        assert read_info(job.shard(0)).rows == 3
    with pytest.raises(StoreError, match=r"does not answer for s3://.*run the same command again"):
        read_info(job.shard(0))


def test_nothing_asks_a_store_before_a_worker_has_forked() -> None:
    code = """
import worker.celery
from contract import settings, store
print(settings.settings().output, store._file_system.cache_info().currsize)
"""
    env = {"EMBEDMILL_OUTPUT": "s3://bucket/jobs", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["s3://bucket/jobs", "0"], done.stderr
