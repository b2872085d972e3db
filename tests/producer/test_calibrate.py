from pathlib import Path

import numpy as np
import pytest

from contract.errors import UserError
from contract.form import VectorForm
from contract.job import Job
from producer.calibrate import ranges_from, ranges_of
from tests.contract.samples import a_job
from tests.producer.by_hand import committed_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return committed_job(tmp_path / "output")


def test_the_ranges_are_those_of_all_vectors(job: Job) -> None:
    assert ranges_of(job) == ranges_from(str(job.folder), 2) == ((0.0, 1.0), (17.0, 1.0))


def test_an_int8_jobs_ranges_are_its_own(tmp_path: Path) -> None:
    job = a_job(tmp_path, form=VectorForm(dtype="int8", ranges=((-1.0, 0.25), (1.0, 0.5))))
    job.save()
    assert ranges_from(str(job.folder), 2) == ((-1.0, 0.25), (1.0, 0.5))


def test_a_numpy_files_ranges_are_float32(tmp_path: Path) -> None:
    np.save(tmp_path / "ranges.npy", np.array([[-0.1, 0], [0.1, 1]]))
    low, high = ranges_from(str(tmp_path / "ranges.npy"), 2)
    assert (low, high) == ((float(np.float32(-0.1)), 0), (float(np.float32(0.1)), 1))


@pytest.mark.parametrize(
    "ranges",
    [np.zeros(4), np.zeros((3, 2)), np.array([[0, 1], [1, 0]]), np.array([[0, np.nan], [1, 1]]), np.array("no")],
)
def test_a_file_without_ranges_is_refused(ranges: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "ranges.npy", ranges)
    with pytest.raises(UserError, match="holds no ranges"):
        ranges_from(str(tmp_path / "ranges.npy"), 2)


def test_other_sources_are_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "empty.npy").touch()
    with pytest.raises(UserError, match=r"empty\.npy holds no ranges"):
        ranges_from(str(tmp_path / "empty.npy"), 2)
    with pytest.raises(UserError, match="ranges of 2 elements; expected 3"):
        ranges_from(str(job.folder), 3)
    with pytest.raises(UserError, match="holds no ranges"):
        ranges_from(str(tmp_path / "none.npy"), 2)
    with pytest.raises(UserError, match="no job in"):
        ranges_from("nothing-of-this-name", 2)
    binary = a_job(tmp_path / "binary", form=VectorForm(dtype="binary"))
    binary.save()
    with pytest.raises(UserError, match="has binary vectors"):
        ranges_from(str(binary.folder), 2)
    empty = a_job(tmp_path / "empty")
    empty.save()
    with pytest.raises(UserError, match="has no vector"):
        ranges_from(str(empty.folder), 2)
