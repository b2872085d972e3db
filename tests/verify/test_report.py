import shlex
from pathlib import Path

from contract.job import Job
from producer.__main__ import main as producer
from tests.contract.samples import a_job
from verify.report import producer_command


def taken(job: Job) -> dict[str, object]:
    """What the producer takes from the command that is to make the job again."""
    python, dash_m, name, *arguments = shlex.split(producer_command(job))
    assert (python, dash_m, name) == ("python", "-m", "producer")
    return producer.make_context("producer", arguments).params


def test_the_command_that_made_a_job_names_its_commit_and_its_stream(tmp_path: Path) -> None:
    job = a_job(
        tmp_path, dataset="stanfordnlp/imdb", config="plain_text", revision="e6281661", stream=True, prefix="a "
    )
    found = taken(job)
    assert (found["dataset"], found["config"], found["revision"]) == ("stanfordnlp/imdb", "plain_text", "e6281661")
    assert (found["stream"], found["prefix"], found["output"]) == (True, "a ", tmp_path)


def test_a_local_dataset_is_named_by_its_place_alone(tmp_path: Path) -> None:
    found = taken(a_job(tmp_path))
    assert (found["dataset"], found["revision"], found["stream"]) == ("/data/reviews.csv", None, False)
