"""Datasets of a Hub on the loopback interface, asked by the real clients."""

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import producer.command
from contract.errors import UserError
from producer.dataset import dataset_of, open_dataset
from producer.parquet_table import ParquetTable
from producer.texts import DatasetSource, TextDataset
from tests.contract.samples import a_job
from tests.hub import READER, Hub, Refusal
from tests.producer.test_dataset import all_texts

CARD = b"""---
configs:
- config_name: plain_text
  default: true
  data_files:
  - {split: train, path: plain_text/train-*}
  - {split: test, path: plain_text/test-*}
- config_name: shouted
  data_files:
  - {split: train, path: shouted/train-*}
---
# Reviews
"""


def parquet(texts: Sequence[str | None], *, group: int = 7) -> bytes:
    """A Parquet file with the texts, and beside them a column that is far larger."""
    noise = random.Random(len(texts))
    ballast = [noise.randbytes(2000) for _ in texts]
    columns = {"ballast": pa.array(ballast, pa.binary()), "text": pa.array(texts, pa.string())}
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target, row_group_size=group, compression="none")
    return target.getvalue()


ROWS: list[list[str | None]] = [
    [f"of the first file: {row}" for row in range(40)],
    ["", None, "two\nlines", "日本", *(f"of the second: {row}" for row in range(20))],
]
TRAIN = [text for file in ROWS for text in file]


@pytest.fixture
def imdb(hub: Hub) -> str:
    """``stanfordnlp/imdb``, whose name was ``imdb``; returns its commit."""
    hub.renamed["imdb"] = "stanfordnlp/imdb"
    files = {f"plain_text/train-{number:05d}-of-00002.parquet": parquet(rows) for number, rows in enumerate(ROWS)}
    files["plain_text/test-00000-of-00001.parquet"] = parquet(["of the test"])
    files["shouted/train-00000-of-00001.parquet"] = parquet(["LOUD"])
    return hub.add("datasets", "stanfordnlp/imdb", {"README.md": CARD, **files})


streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["downloaded", "streamed"])


@streamed_or_not
def test_a_name_of_old_leads_to_the_dataset(imdb: str, stream: bool) -> None:
    dataset = open_dataset(DatasetSource("imdb", stream=stream))
    assert (dataset.dataset, dataset.revision) == ("stanfordnlp/imdb", imdb)
    assert (dataset.split, dataset.text, dataset.rows) == ("train", "{text}", len(TRAIN))
    assert all_texts(dataset) == TRAIN


@streamed_or_not
def test_a_configuration_and_a_split_are_chosen(imdb: str, stream: bool) -> None:
    assert all_texts(open_dataset(DatasetSource("imdb", split="test", stream=stream))) == ["of the test"]
    assert all_texts(open_dataset(DatasetSource("imdb", config="shouted", stream=stream))) == ["LOUD"]
    with pytest.raises(UserError, match=r"imdb cannot be read .*shouted.*--config"):
        open_dataset(DatasetSource("imdb", config="whispered", stream=stream))
    with pytest.raises(UserError, match=r"no split 'dev' in stanfordnlp/imdb; there: train, test"):
        open_dataset(DatasetSource("imdb", split="dev", stream=stream))


@streamed_or_not
def test_a_branch_a_tag_and_a_commit_are_revisions(imdb: str, hub: Hub, stream: bool) -> None:
    repo = hub.repos["datasets", "stanfordnlp/imdb"]
    new = repo.commit({"train.parquet": parquet(["newer"])})
    repo.refs["v1.0"] = imdb
    draft = repo.commit({"train.parquet": parquet(["a draft"])}, "refs/pr/3")
    for revision, commit, first in (
        (None, new, "newer"),
        ("main", new, "newer"),
        ("v1.0", imdb, TRAIN[0]),
        (imdb, imdb, TRAIN[0]),
        ("refs/pr/3", draft, "a draft"),
    ):
        dataset = open_dataset(DatasetSource("imdb", revision=revision, stream=stream))
        assert (dataset.revision, dataset.texts(range(1))) == (commit, [first])
    with pytest.raises(UserError, match=r"imdb has no revision v2; expected a branch, a tag or a commit"):
        open_dataset(DatasetSource("imdb", revision="v2", stream=stream))


@streamed_or_not
def test_a_private_dataset_takes_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    hub.add("datasets", "acme/secret", {"train.parquet": parquet(["hush"])}, private=True)
    for name in ("acme/secret", "acme/nothing"):  # a stranger is not told which of them is there
        with pytest.raises(UserError, match=f"no dataset {name} on the Hub that this user may see .*HF_TOKEN"):
            open_dataset(DatasetSource(name, stream=stream))
    monkeypatch.setenv("HF_TOKEN", READER)
    assert all_texts(open_dataset(DatasetSource("acme/secret", stream=stream))) == ["hush"]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="Invalid credentials"):
        open_dataset(DatasetSource("acme/secret", stream=stream))


def test_any_rows_of_a_streamed_dataset_are_those_of_the_downloaded_one(imdb: str) -> None:
    downloaded, streamed = open_dataset(DatasetSource("imdb")), open_dataset(DatasetSource("imdb", stream=True))
    places = random.Random(3)
    for _ in range(20):
        start = places.randrange(len(TRAIN))
        rows = range(start, places.randint(start + 1, len(TRAIN)))
        assert streamed.texts(rows) == downloaded.texts(rows) == TRAIN[rows.start : rows.stop]


def test_a_file_without_rows_is_no_obstacle(hub: Hub) -> None:
    files = {f"train-{number}.parquet": parquet(texts) for number, texts in enumerate([[], ["a"], [], ["b"], []])}
    hub.add("datasets", "acme/gaps", files)
    dataset = open_dataset(DatasetSource("acme/gaps", stream=True))
    assert (dataset.rows, all_texts(dataset), dataset.texts(range(1, 2))) == (2, ["a", "b"], ["b"])


@streamed_or_not
def test_files_of_several_types_have_those_of_the_first(hub: Hub, stream: bool) -> None:
    files = {}
    for number, (kind, width) in enumerate([(pa.string(), pa.int32()), (pa.large_string(), pa.int64())]):
        target = io.BytesIO()
        pq.write_table(pa.table({"n": pa.array([1, 2], width), "text": pa.array(["a", None], kind)}), target)
        files[f"train-{number}.parquet"] = target.getvalue()
    hub.add("datasets", "acme/mixed", files)
    texts, kept = open_dataset(DatasetSource("acme/mixed", stream=stream, columns=("n",))).read(range(4))
    assert (texts, kept["n"].to_pylist(), kept["n"].type) == (["a", None, "a", None], [1, 2, 1, 2], pa.int32())


def fetched(hub: Hub) -> list[tuple[str, str, str]]:
    return hub.asked(r"^GET /cdn/")


def test_a_streamed_dataset_leaves_nothing_on_disk_and_its_other_columns_on_the_hub(
    imdb: str, hub: Hub, tmp_path: Path
) -> None:
    dataset = open_dataset(DatasetSource("imdb", stream=True))
    assert isinstance(dataset.table, ParquetTable)
    assert dataset.rows == len(TRAIN)
    hub.requests.clear()
    assert all_texts(dataset) == TRAIN
    ranges = [tuple(map(int, asked.removeprefix("bytes=").split("-"))) for _, _, asked in fetched(hub)]
    assert 0 < sum(end - begin + 1 for begin, end in ranges) < 20_000  # of 128 kB, almost all of it ballast
    left = [path for path in (tmp_path / "huggingface").rglob("*") if path.is_file() and path.stat().st_size > 5_000]
    assert left == []


def test_batch_after_batch_fetches_each_row_group_once(imdb: str, hub: Hub) -> None:
    dataset = open_dataset(DatasetSource("imdb", stream=True))
    hub.requests.clear()
    texts = [text for start in range(0, len(TRAIN), 5) for text in dataset.texts(range(start, min(start + 5, 64)))]
    assert texts == TRAIN
    assert len(fetched(hub)) == len(set(fetched(hub))) == 6 + 4  # row groups of 7, of 40 and of 24 rows


def test_kept_columns_of_a_streamed_dataset_come_with_the_texts(imdb: str, hub: Hub) -> None:
    streamed, downloaded = (
        open_dataset(DatasetSource("imdb", stream=stream, columns=("ballast",))) for stream in (True, False)
    )
    hub.requests.clear()
    for start in range(0, len(TRAIN), 5):
        rows = range(start, min(start + 5, len(TRAIN)))
        texts, kept = streamed.read(rows)
        assert texts == TRAIN[rows.start : rows.stop]
        assert kept == downloaded.read(rows)[1]
    assert len(fetched(hub)) == len(set(fetched(hub)))


def test_files_are_listed_once_and_not_asked_for_one_by_one(hub: Hub) -> None:
    files = {f"data/train-{number:05d}-of-00030.parquet": parquet([str(number)]) for number in range(30)}
    hub.add("datasets", "acme/many", files)
    dataset = open_dataset(DatasetSource("acme/many", stream=True))
    assert all_texts(dataset) == [str(number) for number in range(30)]
    assert hub.asked("paths-info") == []
    assert len(hub.asked("/tree/.*/data$")) <= 2


def test_what_is_not_parquet_cannot_be_streamed(hub: Hub) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in "abc").encode()
    commit = hub.add("datasets", "acme/lines", {"train.jsonl": lines})
    with pytest.raises(UserError, match=r"acme/lines cannot be streamed.*without|leave out --stream.*refs/convert"):
        open_dataset(DatasetSource("acme/lines", stream=True))
    assert all_texts(open_dataset(DatasetSource("acme/lines"))) == ["a", "b", "c"]
    hub.repos["datasets", "acme/lines"].commit(
        {"default/train/0000.parquet": parquet(["a", "b", "c"])}, "refs/convert/parquet"
    )
    converted = open_dataset(DatasetSource("acme/lines", revision="refs/convert/parquet", stream=True))
    assert (all_texts(converted), converted.split) == (["a", "b", "c"], "train")
    assert converted.revision != commit


def test_a_local_dataset_has_no_revision_and_no_stream(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    for source in (DatasetSource("data.jsonl", revision="main"), DatasetSource("data.jsonl", stream=True)):
        with pytest.raises(UserError, match=r"is on this machine; --revision and --stream are for .* the Hub"):
            open_dataset(source)


def test_a_hub_that_refuses_in_the_middle_is_an_error_that_says_how_to_go_on(imdb: str, hub: Hub) -> None:
    dataset = open_dataset(DatasetSource("imdb", stream=True))
    assert dataset.texts(range(7)) == TRAIN[:7]

    def closed(method: str, path: str) -> None:
        raise Refusal(403, "", "closed for the night")

    hub.gate = closed
    with pytest.raises(UserError, match=r"train-00000-of-00002.parquet cannot be read .*same command again"):
        dataset.texts(range(7, 8))
    hub.gate = lambda method, path: None
    assert dataset.texts(range(7, 8)) == TRAIN[7:8]


@streamed_or_not
def test_a_job_gets_the_commit_it_was_begun_with(imdb: str, hub: Hub, tmp_path: Path, stream: bool) -> None:
    job = a_job(tmp_path, dataset="stanfordnlp/imdb", revision=imdb, rows=len(TRAIN), stream=stream)
    repo = hub.repos["datasets", "stanfordnlp/imdb"]
    repo.commit({"train.parquet": parquet(["newer"])})
    dataset: TextDataset = dataset_of(job)
    assert (dataset.revision, isinstance(dataset.table, ParquetTable)) == (imdb, stream)
    assert dataset.texts(range(3)) == TRAIN[:3]
    with pytest.raises(UserError, match=r"has 64 rows; .* has 60 of them"):
        dataset_of(job.model_copy(update={"rows": 60}))
    del repo.commits[imdb]
    with pytest.raises(UserError, match="has no revision"):
        dataset_of(job)


def test_streamed_or_not_it_is_the_same_job(imdb: str, tmp_path: Path) -> None:
    one, other = (a_job(tmp_path, dataset="stanfordnlp/imdb", revision=imdb, stream=stream) for stream in (False, True))
    assert (one.id, one.identity) == (other.id, other.identity)


def test_a_dataset_that_was_downloaded_is_there_without_a_network(
    imdb: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_dataset(DatasetSource("imdb")).revision == imdb
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    dataset = open_dataset(DatasetSource("stanfordnlp/imdb"))
    assert (dataset.revision, all_texts(dataset)) == (imdb, TRAIN)
    assert hub.requests == []


def test_the_command_refuses_a_stream_of_a_local_file(tmp_path: Path, tiny: object) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    told = CliRunner().invoke(producer.command.main, ["--dataset", "data.jsonl", "--stream"])
    assert told.exit_code == 1
    assert "is on this machine" in told.stderr
