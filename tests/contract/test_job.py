import errno
import json
import os
from pathlib import Path

import pytest

from contract.errors import UserError
from contract.job import Job, load_job
from contract.jobs import latest_job
from contract.settings import settings
from contract.store import disk, location
from tests.contract.samples import a_job


@pytest.mark.parametrize(
    "changes",
    [{"dataset": "/elsewhere/reviews.csv"}, {"dataset": "/data/reviews.csv.gz"}, {"engine": "same-under-another-name"}],
)
def test_moving_things_gives_the_same_job(changes: dict[str, object], tmp_path: Path) -> None:
    assert a_job(tmp_path / "there", **changes).id == a_job(tmp_path / "here").id


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "en"},
        {"split": "test"},
        {"text": "{body}"},
        {"revision": "r2"},
        {"limit": 10},
        {"prefix": "passage: "},
        {"fingerprint": "0" * 16},
        {"rows": 9},
        {"batch_rows": 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_decides_the_rows_of_the_shards_gives_another_job(changes: dict[str, object], tmp_path: Path) -> None:
    assert a_job(tmp_path, **changes).id != a_job(tmp_path).id


@pytest.mark.parametrize(
    ("dataset", "start"),
    [
        ("stanfordnlp/imdb", "imdb-train-"),
        ("/data/My Reviews [final].csv.gz", "my-reviews-final-train-"),
        ("/data/日本語.jsonl", "train-"),
    ],
)
def test_a_jobs_name_can_be_read_and_typed(dataset: str, start: str, tmp_path: Path) -> None:
    name = a_job(tmp_path, dataset=dataset).id
    assert name.startswith(start)
    assert name == "".join(letter for letter in name if letter.isascii() and (letter.isalnum() or letter == "-"))


@pytest.mark.parametrize(("rows", "batch_rows"), [(1, 1), (1, 1024), (1023, 1024), (1024, 1024), (1025, 1024), (17, 5)])
def test_batches_cover_every_row_once_and_in_order(rows: int, batch_rows: int, tmp_path: Path) -> None:
    job = a_job(tmp_path, rows=rows, batch_rows=batch_rows)
    ranges = [job.row_range(batch) for batch in range(job.batches)]
    assert [row for taken in ranges for row in taken] == list(range(rows))
    assert all(0 < len(taken) <= batch_rows for taken in ranges)


def test_shards_are_named_as_the_hub_names_them(tmp_path: Path) -> None:
    job = a_job(tmp_path, rows=25_000, batch_rows=1000, split="validation_matched")
    assert job.shard(3) == job.folder / "data" / "validation_matched-00003-of-00025.parquet"


def test_more_batches_than_five_digits_hold_have_their_shards(tmp_path: Path) -> None:
    job = a_job(tmp_path, rows=123_457, batch_rows=1)
    assert job.shard(123_456).name == "train-123456-of-123457.parquet"
    job.save()
    job.shard(123_456).touch()
    job.shard(7).touch()
    assert job.committed() == {7, 123_456}


def test_only_this_jobs_shards_count_as_committed(tmp_path: Path) -> None:
    job = a_job(tmp_path, rows=10, batch_rows=4)
    assert job.committed() == set()
    job.save()
    assert job.committed() == set()
    foreign = [
        "train-00000-of-00004.parquet",
        "test-00000-of-00003.parquet",
        "train-00000-of-00003.parquet.tmp",
        ".train-00000-of-00003.parquet",
        "train-0000-of-00003.parquet",
        "train-00007-of-00003.parquet",
        "README.md",
    ]
    for name in foreign:
        (job.data / name).touch()
    assert job.committed() == set()
    job.shard(2).touch()
    assert job.committed() == {2}


def test_a_saved_job_is_the_loaded_job(tmp_path: Path) -> None:
    job = a_job(tmp_path / "output", prefix="käse: ", limit=10)
    job.save()
    assert load_job(job.folder) == job
    assert sorted(path.name for path in job.folder.iterdir()) == ["data", "job.json", "staging"]


def test_a_moved_job_knows_where_it_is(tmp_path: Path) -> None:
    job = a_job(tmp_path / "output")
    job.save()
    moved = tmp_path / "elsewhere" / job.id
    moved.parent.mkdir()
    job.folder.rename(moved)
    assert load_job(location(moved)).data == location(moved / "data")
    assert load_job(location(moved)).identity == job.identity


@pytest.mark.parametrize(
    ("field", "value"), [("batch_rows", 5), ("rows", 9), ("prefix", "x"), ("revision", "r2"), ("columns", ["a"])]
)
def test_an_edited_job_is_told_as_that(field: str, value: object, tmp_path: Path) -> None:
    job = a_job(tmp_path / "output")
    job.save()
    fields = json.loads((job.folder / "job.json").read_text()) | {field: value}
    (job.folder / "job.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"was edited: it describes job .* and says that it is {job.id}; .*undo"):
        load_job(job.folder)


def test_a_renamed_folder_holds_the_same_job(tmp_path: Path) -> None:
    job = a_job(tmp_path / "output")
    job.save()
    job.folder.rename(tmp_path / "mine")
    assert load_job(location(tmp_path / "mine")).id == job.id


def test_saving_a_job_again_keeps_what_is_there(tmp_path: Path) -> None:
    job = a_job(tmp_path / "output")
    job.save()
    job.shard(0).touch()
    job.save()
    assert job.committed() == {0}


def test_a_folder_that_belongs_to_another_job_is_refused(tmp_path: Path) -> None:
    job = a_job(tmp_path / "output")
    job.save()
    before = (job.folder / "job.json").read_bytes()
    other = a_job(tmp_path, batch_rows=5).model_copy(update={"folder": job.folder})
    with pytest.raises(UserError, match="batch_rows is 4 there and 5 here") as caught:
        other.save()
    assert "--output" in str(caught.value)
    assert (job.folder / "job.json").read_bytes() == before


def test_a_job_that_is_there_goes_on_while_its_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job = a_job(tmp_path / "output")
    job.save()
    monkeypatch.setattr(disk, "write_atomically", full)
    job.save()
    with pytest.raises(UserError, match="No space left on device"):
        a_job(tmp_path / "output", batch_rows=5).save()


def test_a_jobs_folder_is_no_place_for_jobs(tmp_path: Path) -> None:
    job = a_job(tmp_path / "output")
    job.save()
    inside = a_job(job.folder, split="test")
    with pytest.raises(UserError, match="is the folder of a job") as caught:
        inside.save()
    assert f"--output {tmp_path / 'output'}" in str(caught.value)
    assert not inside.folder.exists()


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made") as caught:
        a_job(tmp_path / "file").save()
    assert "--output" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"folder": "x"}', json.dumps({"more": 1}), "\0\xff"])
def test_a_garbled_job_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"job\.json is no job"):
        load_job(location(tmp_path))


def test_a_field_of_another_version_is_named(tmp_path: Path) -> None:
    job = a_job(tmp_path / "output")
    job.save()
    fields = json.loads((job.folder / "job.json").read_text()) | {"colour": "red"}
    (job.folder / "job.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="colour"):
        load_job(job.folder)


def test_a_folder_without_a_job_is_refused_with_the_command_that_lists_them(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UserError, match="embedmill list"):
            load_job(location(folder))


def test_the_latest_job_is_the_one_saved_last() -> None:
    first, second = (a_job(settings().output, split=split) for split in ("test", "train"))
    for job in (first, second):
        job.save()
    _age(first, 200)
    _age(second, 100)
    assert latest_job() == second
    _age(first, 0)
    assert latest_job() == first


def _age(job: Job, seconds: int) -> None:
    when = 1_900_000_000 - seconds
    os.utime(str(job.folder / "job.json"), (when, when))


def test_without_a_job_there_is_no_latest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="python -m producer"):
        latest_job()
    settings().output.mkdir()
    with pytest.raises(UserError, match="no job in"):
        latest_job()
