"""Jobs with every option of the output: verified when they are as they should be, and caught when they are not."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from contract.engine import EngineSpec
from contract.form import VectorForm
from contract.job import Job
from contract.shard import read_info
from producer.calibrate import ranges_of
from tests.conftest import build_engine
from tests.verify.jobs import TEXTS, finished_job, rewrite, with_value
from tests.verify.test_command import failed, failing_rows, verdict, verify

pytestmark = pytest.mark.usefixtures("undrawn")

_WITH = [text for text in TEXTS if text is not None]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> SentenceTransformer:
    """The tiny model by sentence-transformers: mean pooling, not normalized."""
    return SentenceTransformer(str(tiny_model), device="cpu")


def stored(job: Job) -> np.ndarray:
    tables = [pq.read_table(str(job.shard(batch))) for batch in range(job.batches)]
    return np.stack([vector for table in tables for vector in table["embedding"].drop_null().to_numpy()])


def test_int8_is_what_sentence_transformers_makes_of_the_same_vectors(tiny: EngineSpec, dataset: Path) -> None:
    plain = finished_job(tiny, dataset)
    job = finished_job(tiny, dataset, form=VectorForm(dtype="int8", ranges=ranges_of(plain)))
    assert job.id != plain.id
    theirs = quantize_embeddings(stored(plain), "int8")
    assert np.array_equal(stored(job), theirs)
    assert "int8" in verify(job.folder).output
    assert (verdict(job)["passed"], verdict(job)["dtype"]) == (True, "int8")


def test_binary_is_what_sentence_transformers_makes_of_the_same_vectors(tiny: EngineSpec, dataset: Path) -> None:
    plain, job = finished_job(tiny, dataset), finished_job(tiny, dataset, form=VectorForm(dtype="binary"))
    assert np.array_equal(stored(job), quantize_embeddings(stored(plain), "binary"))
    assert verify(job.folder).exit_code == 0


def test_dimensions_and_float16_are_those_of_sentence_transformers(
    tiny: EngineSpec, dataset: Path, model: SentenceTransformer
) -> None:
    job = finished_job(tiny, dataset, form=VectorForm(dtype="float16", dimensions=12))
    model.max_seq_length = tiny.max_length
    theirs = model.encode(_WITH, truncate_dim=12, normalize_embeddings=tiny.normalize)
    assert stored(job).dtype == np.float16
    np.testing.assert_allclose(stored(job).astype(np.float32), theirs, rtol=2e-3, atol=1e-4)
    assert "the first 12 dimensions" in " ".join(verify(job.folder).output.replace("│", "").split())
    assert verdict(job)["passed"]


@pytest.mark.parametrize("normalize", [False, True])
def test_a_long_texts_vector_is_the_mean_of_its_windows_by_sentence_transformers(
    normalize: bool, tiny_model: Path, tiny: EngineSpec, dataset: Path, model: SentenceTransformer
) -> None:
    spec = build_engine(tiny_model, f"windows-{normalize}", "mean", normalize=normalize, max_length=64)
    job = finished_job(spec, dataset, overlap=16, batch_rows=20)
    found = iter(stored(job))
    size, step = 64 - 2, 64 - 2 - 16
    for text in _WITH:
        ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        starts = range(0, max(1, len(ids) - 16), step) if len(ids) > size else [0]
        windows = [ids[start : start + size] for start in starts]
        first, last = model.tokenizer.cls_token_id, model.tokenizer.sep_token_id
        inputs = [{"input_ids": [first, *window, last]} for window in windows]
        features = model.tokenizer.pad(inputs, return_tensors="pt", return_attention_mask=True)
        vectors = model(dict(features))["sentence_embedding"].detach().numpy()
        if normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        mean = np.average(vectors, axis=0, weights=[len(window) + 2 for window in windows])
        mean = mean / np.linalg.norm(mean) if normalize else mean
        np.testing.assert_allclose(next(found), mean, atol=2e-5)
    table = pq.read_table(str(job.shard(2)))
    assert not any(table["truncated"].to_pylist())
    infos = [read_info(job.shard(batch)) for batch in range(job.batches)]
    assert sum(info.truncated for info in infos) == 0
    assert [info.rows for info in infos] == [20, 20, 8]
    assert infos[2].tokens == sum(table["n_tokens"].to_pylist()) > 8 * 64
    assert verify(job.folder).exit_code == 0, verify(job.folder).output
    assert "sharing 16 tokens" in " ".join(verify(job.folder).output.replace("│", "").split())


def test_every_token_has_its_vector_in_the_jobs_form(tiny_model: Path, dataset: Path) -> None:
    spec = build_engine(tiny_model, "tokens-in-form", "tokens", max_length=32)
    plain = finished_job(spec, dataset, form=VectorForm(dimensions=20))
    form = VectorForm(dtype="int8", dimensions=20, ranges=ranges_of(plain))
    for job in (finished_job(spec, dataset, form=form), finished_job(spec, dataset, form=VectorForm(dtype="binary"))):
        assert verify(job.folder).exit_code == 0


_COLUMNS: dict[str, Any] = {
    "text": TEXTS,
    "label": [row % 3 for row in range(len(TEXTS))],
    "score": [float("nan") if row == 5 else row / 7 for row in range(len(TEXTS))],
    "tags": [["a", None] if row % 2 else [] for row in range(len(TEXTS))],
    "source": [{"url": f"https://host/{row}", "n": row} if row else None for row in range(len(TEXTS))],
}


@pytest.fixture
def wide(workplace: Path) -> Path:
    datasets.Dataset.from_dict(_COLUMNS).save_to_disk(workplace / "wide")
    return workplace / "wide"


@pytest.mark.parametrize("overlap", [None, 0])
def test_kept_columns_of_every_kind_are_the_datasets(tiny: EngineSpec, wide: Path, overlap: int | None) -> None:
    job = finished_job(tiny, wide, columns=("label", "text", "score", "tags", "source"), overlap=overlap)
    tables = [pq.read_table(str(job.shard(batch))) for batch in range(job.batches)]
    for name, values in _COLUMNS.items():
        assert repr([value for table in tables for value in table[name].to_pylist()]) == repr(values)
    told = verify(job.folder)
    assert told.exit_code == 0, told.output
    assert verdict(job)["columns"] == ["label", "text", "score", "tags", "source"]
    loaded = datasets.load_dataset(str(job.folder), split="train", cache_dir=str(wide.parent / "cache"))
    assert loaded["label"][:4] == [0, 1, 2, 0]


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.date32(), pa.struct([("at", pa.date32())])])
def test_a_kept_date_after_the_last_that_python_knows(tiny: EngineSpec, workplace: Path, kind: pa.DataType) -> None:
    late: list[Any] = [10**7 + row for row in range(len(TEXTS))]
    if pa.types.is_struct(kind):
        dates = pa.StructArray.from_arrays([pa.array(late, pa.int32()).cast(pa.date32())], names=["at"])
    else:
        late = [row * 10**11 for row in late] if pa.types.is_timestamp(kind) else late
        dates = pa.array(late, pa.int64() if pa.types.is_timestamp(kind) else pa.int32()).cast(kind)
    file = workplace / "late.parquet"
    pq.write_table(pa.table({"text": TEXTS, "at": dates}), file)
    job = finished_job(tiny, file, columns=("at",))
    told = verify(job.folder)
    assert told.exit_code == 0, told.output
    rewrite(
        job,
        1,
        lambda table: table.set_column(table.schema.names.index("at"), "at", table["at"].take([1, *range(1, 16)])),
    )
    verify(job.folder)
    assert (failed(job), failing_rows(job)) == ({"columns"}, [16])


def test_a_kept_value_that_was_changed_is_found(tiny: EngineSpec, wide: Path) -> None:
    job = finished_job(tiny, wide, columns=("label",))
    rewrite(job, 1, with_value("label", 3, 2))
    told = verify(job.folder)
    assert told.exit_code == 1
    assert (failed(job), failing_rows(job)) == ({"columns"}, [19])
    assert "a kept column has another value" in told.output


def test_a_shard_without_a_kept_column_is_none(tiny: EngineSpec, wide: Path) -> None:
    job = finished_job(tiny, wide, columns=("label",))
    rewrite(job, 1, lambda table: table.drop_columns(["label"]))
    assert verify(job.folder).exit_code == 1
    assert "shards" in failed(job)


@pytest.mark.parametrize("dtype", ["int8", "binary", "float16"])
def test_a_quantized_vector_that_is_wrong_is_found(tiny: EngineSpec, dataset: Path, dtype: str) -> None:
    ranges = ranges_of(finished_job(tiny, dataset)) if dtype == "int8" else None
    job = finished_job(tiny, dataset, form=VectorForm.model_validate({"dtype": dtype, "ranges": ranges}))
    other = [-value - 1 for value in pq.read_table(str(job.shard(0)))["embedding"][2].as_py()]  # every bit turned
    rewrite(job, 0, with_value("embedding", 2, other))
    assert verify(job.folder).exit_code == 1
    assert (failed(job), failing_rows(job)) == ({"fp32 vectors"}, [2])


def test_steps_that_are_off_throughout_are_found(tiny: EngineSpec, dataset: Path) -> None:
    plain = finished_job(tiny, dataset)
    job = finished_job(tiny, dataset, form=VectorForm(dtype="int8", ranges=ranges_of(plain)))
    moved = np.clip(np.array(pq.read_table(str(job.shard(0)))["embedding"][2].as_py()) + 9, -128, 127)
    rewrite(job, 0, with_value("embedding", 2, moved.tolist()))
    assert verify(job.folder).exit_code == 1
    assert failing_rows(job) == [2]


def test_a_vector_of_another_width_in_a_plain_list_is_found(tiny: EngineSpec, dataset: Path) -> None:
    job = finished_job(tiny, dataset, form=VectorForm(dtype="binary"))
    rewrite(job, 1, with_value("embedding", 4, [0]))
    told = verify(job.folder)
    assert told.exit_code == 1
    assert failed(job) >= {"shards"}
    assert "a vector of 1 element, expected 4" in json.dumps(verdict(job))


def test_vectors_of_another_type_are_no_shard_of_the_job(tiny: EngineSpec, dataset: Path) -> None:
    job, plain = finished_job(tiny, dataset, form=VectorForm(dtype="float16")), finished_job(tiny, dataset)
    job.shard(1).write_bytes(plain.shard(1).read_bytes())
    assert verify(job.folder).exit_code == 1
    assert "vectors of halffloat" in json.dumps(verdict(job))
    whole = finished_job(tiny, dataset, form=VectorForm(dtype="binary"))
    rewrite(whole, 1, lambda table: table.set_column(1, "embedding", table["embedding"].cast(pa.list_(pa.int8(), 4))))
    assert verify(whole.folder).exit_code == 1
    assert "vectors of int8" in json.dumps(verdict(whole))
