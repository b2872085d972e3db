"""How many rows a batch has where the user names no number."""

import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import Job
from contract.store import location
from producer.dataset import open_dataset
from producer.request import JobRequest, resolve
from producer.sizing import LEAST_BATCHES, TOKENS, Sample, sampled, size_from
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer


@pytest.mark.parametrize(
    ("mean", "kept", "length", "rows", "batch"),
    [
        (280, 0, 512, 10_000_000, 1024),  # reviews
        (36, 0, 512, 10_000_000, 8320),  # short texts
        (12, 0, 512, 10_000_000, 24_960),
        (3, 0, 128, 10_000_000, 65_536),
        (0, 0, 128, 10_000_000, 65_536),  # no row has a text
        (280, 0, 512, 25_000, 576),  # 43 batches
        (36, 0, 512, 2307, 57),  # 41 batches
        (36, 0, 512, 10, 55),  # so few that they are one
        (511, 0, 512, 642, 16),  # 41 batches, each of 8,000 tokens
        (3000, 0, 512, 10_000_000, 64),  # long texts in windows
        (40_000, 0, 512, 10_000_000, 7),
        (1_000_000, 0, 512, 10_000_000, 1),
        (8192, 0, 8192, 10_000_000, 36),
        (280, 0, 8192, 10_000_000, 1024),  # as with an engine of 512
        (36, 0, 8192, 10_000_000, 4096),  # if one of them has 8,192 tokens, 400 MB of padding
        (280, 0, 32_768, 10_000_000, 1024),
        (36, 0, 32_768, 10_000_000, 1024),
        (280, 100_000, 512, 10_000_000, 256),  # kept images
        (280, 100_000_000, 512, 10_000_000, 1),
    ],
)
def test_a_batch_has_as_many_rows_as_every_limit_allows(
    mean: int, kept: int, length: int, rows: int, batch: int
) -> None:
    size = size_from(Sample(1024, 1024 * mean, 1024 * kept), rows, length)
    assert size.rows == batch
    assert batch * mean <= max(TOKENS, mean)


def test_it_says_why() -> None:
    why = size_from(Sample(1024, 1024 * 280, 0), 10_000_000, 512).why
    assert why == (
        "Batches of 1,024 rows, about 287,000 tokens each: at most 300,000 tokens, by a sample of 1,024 rows"
    )
    assert "at least 40 batches" in size_from(Sample(1024, 1024 * 280, 0), 25_000, 512).why
    assert "at most 32 MiB of kept columns" in size_from(Sample(10, 10 * 280, 10**6), 10**6, 512).why


@pytest.mark.parametrize("rows", [1, 64, 65, 1023, 1024, 1025, 4000, 123_457, 10**9])
def test_the_sample_is_spread_over_the_dataset(rows: int) -> None:
    ranges = sampled(rows)
    assert sum(map(len, ranges)) == min(rows, 1024)
    assert all(0 <= one.start < one.stop <= rows for one in ranges)
    assert all(one.stop <= next_one.start for one, next_one in itertools.pairwise(ranges))
    if rows > 1024:
        assert [one[-1] * 16 // rows for one in ranges] == list(range(16))


def job_of(spec: EngineSpec, file: Path, columns: tuple[str, ...] = (), **options: object) -> Job:
    source = DatasetSource(str(file), columns=columns)
    texts = open_dataset(source)
    return resolve(JobRequest(source, location(file.parent / "output"), **options), texts, spec, open_tokenizer(spec))  # type: ignore[arg-type]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """8,000 rows of three words, of which every second one has no text; the first 4,000 are as long as a row may be."""
    file = tmp_path / "reviews.parquet"
    texts = [None if row % 2 else "good " * 600 if row < 4000 else "not so good" for row in range(8000)]
    pq.write_table(pa.table({"text": texts, "image": [bytes(50_000 * (row == 0)) for row in range(8000)]}), file)
    return file


def test_a_job_without_batch_rows_has_batches_by_its_texts(
    tiny: EngineSpec, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, start = job_of(tiny, reviews), job_of(tiny, reviews, limit=4000)
    assert whole.batch_rows == 8000 // LEAST_BATCHES // 64 * 64
    assert start.batch_rows == 64  # 100 of them, and so 64, are a fortieth of the first 4,000 rows
    assert "at least 40 batches" in capsys.readouterr().err
    assert job_of(tiny, reviews) == whole
    assert "by a sample of 1,024 rows\n" in capsys.readouterr().err
    assert job_of(tiny, reviews, batch_rows=100).batch_rows == 100
    assert "Batches of" not in capsys.readouterr().err  # what is named is not explained


def test_windows_count_with_all_of_their_tokens(tiny: EngineSpec, tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text("text\n" + f"{'good ' * 30_000}\n" * 20)
    assert job_of(tiny, file).batch_rows == 3  # about 2,000 tokens, as each text is cut at a row's length
    length = open_tokenizer(tiny).length
    windowed = job_of(tiny, file, long_texts="window", overlap=length // 2)
    assert windowed.batch_rows == 1
    file.write_text("text\n" + f"{'good ' * 30_000}\n" * 200)
    assert 2 <= job_of(tiny, file, long_texts="window", overlap=length // 2).batch_rows <= TOKENS // 30_000


def test_a_vector_for_each_token_takes_small_batches(tiny: EngineSpec, reviews: Path) -> None:
    per_token = tiny.model_copy(update={"pooling": "tokens"})
    assert per_token.per_token
    assert job_of(per_token, reviews).batch_rows == 64


def test_a_row_of_the_sample_that_cannot_be_read_is_named(tiny: EngineSpec, reviews: Path) -> None:
    texts = open_dataset(DatasetSource(str(reviews)))
    request = JobRequest(DatasetSource(str(reviews)), location(reviews.parent))

    class Broken(type(texts)):  # type: ignore[misc]
        def read(self, rows: range) -> object:
            raise OSError("no such device")

    broken = Broken(**{name: getattr(texts, name) for name in texts.__dataclass_fields__})
    with pytest.raises(UserError, match=r"rows \d+ to \d+ of .*reviews.parquet cannot be tokenized \(no such device\)"):
        resolve(request, broken, tiny, open_tokenizer(tiny))
