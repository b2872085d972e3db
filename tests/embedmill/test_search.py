import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import Job
from embedmill.search import embed, main, search
from producer.batches import batch_of
from producer.dataset import open_dataset
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer
from tests.contract.samples import a_job, packed
from worker.embed import Embedder

TEXTS = ["a hacker", None, "the bug [sic] of it", "a hacker", "to frob", "spam in a can", "the end of the line"]


@pytest.fixture
def job(tiny: EngineSpec, workplace: Path) -> Job:
    """A finished job of three shards over TEXTS."""
    file = workplace / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    revision = open_dataset(DatasetSource(str(file))).revision
    job = a_job(
        workplace / "output",
        dataset=str(file),
        revision=revision,
        rows=len(TEXTS),
        batch_rows=3,
        engine=tiny.name,
        fingerprint=tiny.fingerprint,
    )
    job.save()
    embedder = Embedder(threads=1)
    for number in range(job.batches):
        rows = job.row_range(number)
        embedder.embed(job, number, packed(batch_of(job, number, TEXTS[rows.start : rows.stop], open_tokenizer(tiny))))
    embedder.close()
    return job


def test_a_rows_own_text_finds_it_first_and_equals_come_in_the_datasets_order(job: Job) -> None:
    hacker, spam = search(job, ("a hacker", "spam in a can"), count=3)
    assert [hit.row for hit in hacker[:2]] == [0, 3]
    assert (spam[0].row, spam[0].text) == (5, "spam in a can")
    assert spam[0].score == pytest.approx(1)


def test_the_ranking_is_that_of_all_vectors_at_once(job: Job, tiny: EngineSpec) -> None:
    (hits,) = search(job, ("the can",), count=10)
    present = [row for row, text in enumerate(TEXTS) if text is not None]
    vectors = embed(tiny, tuple(str(TEXTS[row]) for row in present), "").values
    query = embed(tiny, ("the can",), "").values[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines, kind="stable")
    assert [hit.row for hit in hits] == [present[place] for place in order]  # the row without a text is not there
    np.testing.assert_allclose([hit.score for hit in hits], cosines[order], atol=1e-5)


def test_the_command_shows_the_text_as_it_is(job: Job) -> None:
    done = CliRunner().invoke(main, ["--count", "1", "the bug [sic] of it"])
    assert done.exit_code == 0, done.output
    assert done.output.count("the bug [sic] of it") == 2  # as the title and as the hit


def test_what_cannot_be_searched_is_said_in_one_line(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="fingerprint"):
        search(job.model_copy(update={"fingerprint": "0" * 16}), ("a",), count=1)
    with pytest.raises(UserError, match="changed"):
        search(job.model_copy(update={"revision": "other"}), ("a",), count=1)
    with pytest.raises(UserError, match="no shard"):
        search(job.model_copy(update={"split": "test"}), ("a",), count=1)
    outside = EngineSpec.model_construct(
        name="tiny", pooling="mean", include_prompt=False, onnx_sha256="0", torch_sha256="0", modules_sha256=None
    )
    with monkeypatch.context() as patch:
        patch.setattr("embedmill.search.engine_of", lambda *_: outside)
        with pytest.raises(UserError, match="leaves prompts out of its pooling"):
            search(job, ("a",), count=1, prefix="query: ")
    per_token = EngineSpec.model_construct(name="tiny", pooling="tokens")
    monkeypatch.setattr("embedmill.search.engine_of", lambda *_: per_token)
    with pytest.raises(UserError, match="a vector for each token"):
        search(job, ("a",), count=1)
