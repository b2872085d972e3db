"""What the rows that workers have computed add to a job's progress."""

from contract.job import Job
from contract.store import location
from producer.progress import Progress, ShardTotals
from producer.view import View
from tests.contract.samples import a_job
from tests.producer.test_reasons import NOW, TIMEOUT, worker


def view_of(job: Job) -> View:
    workers = (
        worker("a:1:2/0", state="computing", job=job.key, batch=1, computed=0.5),
        worker("a:1:2/1", state="computing", job=job.key, batch=job.batches - 1, computed=1.0),
        worker("a:1:2/2", state="computing", job="another", batch=2, computed=0.9),
        worker("a:1:2/3"),
    )
    return View(job=job.key, now=NOW, timeout=TIMEOUT, workers=workers)


def test_rows_that_are_computed_count_before_their_shard_is_there() -> None:
    job = a_job(location("output"), rows=95, batch_rows=10)
    assert view_of(job).rows_begun(job, {1, 2, 9}) == 5 + 5  # the last batch has 5 rows


def test_those_of_a_shard_that_is_there_do_not_count_twice() -> None:
    job = a_job(location("output"), rows=95, batch_rows=10)
    assert view_of(job).rows_begun(job, {2, 9}) == 5


def test_there_are_never_more_than_the_job_has() -> None:
    job = a_job(location("output"), rows=95, batch_rows=10)
    progress = Progress(job, ShardTotals(rows=20), ShardTotals(rows=70), last_shard=0.0, begun=10)
    assert (progress.rows, progress.new_rows) == (95, 75)
