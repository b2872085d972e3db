"""A kept column that is more than its Arrow type, such as an image or a label, is that again in the job's shards."""

from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.batch import Batch
from contract.shard import table_of
from contract.vectors import RowVectors
from producer.dataset import open_dataset
from producer.texts import DatasetSource
from tests.contract.samples import a_batch, info_for, matrix, packed

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["bad", "good"]),
        "image": datasets.Image(),
        "sound": datasets.Audio(),
        "n": datasets.Value("int64"),
    }
)
ROWS = {
    "text": ["a", "b", None],
    "label": [1, 0, None],
    "image": [{"bytes": b"\x89PNG", "path": None}, None, {"bytes": b"x", "path": "x.png"}],
    "sound": [None, {"bytes": b"RIFF", "path": None}, None],
    "n": [1, 2, 3],
}
KEPT = ("label", "image", "sound", "n")


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_a_kept_feature_is_the_same_in_the_shards(kind: str, tmp_path: Path) -> None:
    kinds = FEATURES.arrow_schema
    table = pa.table({name: pa.array(values, kinds.field(name).type) for name, values in ROWS.items()}, schema=kinds)
    if kind == "saved":
        datasets.Dataset(table).save_to_disk(tmp_path / "data")
    else:
        pq.write_table(table, tmp_path / "data.parquet")
    opened = open_dataset(DatasetSource(str(tmp_path / ("data" if kind == "saved" else "data.parquet")), columns=KEPT))
    assert list(opened.features) == ["label", "image", "sound"]

    kept = opened.read(range(3))[1]
    batch = Batch.from_bytes(packed(replace(a_batch(), kept=kept, features=opened.features)))
    vectors = matrix([1, 2], [3, 4]).astype("float32")
    (tmp_path / "job" / "data").mkdir(parents=True)
    shard = table_of(batch, RowVectors.pooled(vectors), info_for(batch))
    pq.write_table(shard, tmp_path / "job" / "data" / "train-00000-of-00001.parquet")
    found = datasets.load_dataset(str(tmp_path / "job"), split="train", cache_dir=str(tmp_path / "again"))
    assert {name: found.features[name] for name in KEPT} == {name: FEATURES[name] for name in KEPT}
    arrow = found.with_format("arrow")[:]
    assert {name: arrow[name].to_pylist() for name in KEPT} == {name: ROWS[name] for name in KEPT}


def test_a_feature_that_is_no_json_makes_no_batch() -> None:
    batch = replace(a_batch(), kept={"label": pa.array([1, 2, 3])}, features={"label": "{"})
    with pytest.raises(ValueError, match="no batch, but"):
        Batch.from_bytes(packed(batch))
