"""One shard: the Parquet file that a batch becomes, readable by pyarrow, pandas, polars, duckdb and datasets.

    row_id      int64
    embedding   fixed_size_list<element>[width]             null for a row without a text or with an error
                list<element>                               the same, where elements are integers
                list<fixed_size_list<element>[width]>       where pooling is "tokens": the row's real tokens
    n_tokens    int32                                       before truncation, special tokens counted
    truncated   bool                                        n_tokens > max_length, unless long texts have windows
    error       string                                      why the row has no vector, though it has a text; null
    text_hash   binary                                      16 bytes: which text it is (contract.origins); null without
                                                            one
    …                                                       the columns of the dataset that are kept

``element`` and ``width`` are the job's ``VectorForm``: float32, float16 or int8, and as many as the engine computes
unless there are fewer dimensions or bits. ``vector_columns.embedding_type`` says why integers lie in a plain list. A
sparse vector has two columns in place of ``embedding``, each null where that would be:

    indices     list<int32>                                 of the elements that are not zero, ascending
    weights     list<element>                               their values, as many

The file's key-value metadata holds a ``ShardInfo``: what made it, its sums, and a digest of each column.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from contract.batch import Batch
from contract.digest import digests_of
from contract.origins import Origins, column_of_hashes
from contract.store import Location
from contract.vector_columns import VECTOR_COLUMNS, vector_columns
from contract.vectors import Layout, RowVectors

_KEY = b"embedmill"

_TIER_OF_RUNTIME = {
    "onnxruntime": "exported to ONNX",
    "tensorrt": "exported to ONNX",
    "torch": "packed rows in PyTorch",
    "sentence-transformers": "the model's own modules",
}
"""How a runtime computes a model, by the first word of its name."""


class ShardInfo(BaseModel):
    """What made a shard, and its sums. Travels in the Parquet file's own metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    batch: int
    engine: str
    """The engine's fingerprint."""
    runtime: str
    """Such as ``onnxruntime 1.32.0``."""
    precision: str
    """``fp32``, ``fp16`` or ``bf16``: the arithmetic, which decides how closely PyTorch FP32 must be met."""
    max_length: int
    rows: int
    tokens: int
    """Tokens of the texts that were embedded: after truncation, padding not counted."""
    truncated: int
    """Rows of which something was cut off, having more than ``max_length`` tokens."""
    without_text: int
    """Rows without a text, or with a blank one, whose embedding is null."""
    recomputed: int
    """Rows whose vector was not finite or zero, and was computed again in FP32."""
    failed: int
    """Rows with an error, whose embedding is null."""
    computed_tokens: int
    """Tokens that the engine computed, padding included."""
    taken: dict[str, int] = Field(default_factory=dict)
    """Rows that have the vector which an earlier job has for their text, by that job's id."""
    repeated: int = 0
    """Rows that have the vector of a row of this shard with the same text."""
    spared_tokens: int = 0
    """Of ``tokens``, those of the rows in ``taken`` and ``repeated``."""
    seconds: float = Field(ge=0, lt=1e9)
    """From the batch's bytes to its vectors."""
    finished: AwareDatetime
    """When that ended, UTC. The file's own time would not do: a copy has another."""
    digests: dict[str, str] = Field(default_factory=dict)
    """Of each column, by name, what ``contract.digest`` gives for it; ``table_of`` puts them in."""

    @property
    def spared(self) -> int:
        """Rows that have a text and whose vector was not computed."""
        return sum(self.taken.values()) + self.repeated

    @property
    def padding(self) -> float:
        """The share of padding in the tokens that were computed."""
        return 1 - (self.tokens - self.spared_tokens) / self.computed_tokens if self.computed_tokens else 0.0

    @property
    def computed_by(self) -> str:
        """The runtime, the tier and the arithmetic, such as ``onnxruntime 1.32.0 (exported to ONNX, fp32)``."""
        tier = _TIER_OF_RUNTIME.get(self.runtime.split(" ")[0])
        return f"{self.runtime} ({f'{tier}, ' if tier else ''}{self.precision})"


def own_columns(layout: Layout) -> tuple[str, ...]:
    """The names of a shard's columns, but for those of the dataset."""
    return ("row_id", *VECTOR_COLUMNS[layout], "n_tokens", "truncated", "error", "text_hash")


def table_of(
    batch: Batch,
    vectors: RowVectors,
    info: ShardInfo,
    *,
    errors: Mapping[int, str] | None = None,
    windowed: bool = False,
) -> pa.Table:
    """A shard's table.

    Args:
        batch: the rows, ``n`` of them.
        vectors: in row order, rows without a text or with an error left out.
        info: what made the vectors.
        errors: index of the row in the batch → why it has no vector.
        windowed: whether a text longer than the engine takes was cut into windows and not truncated.
    """
    errors = errors or {}
    without = batch.n_tokens == 0
    without[list(errors)] = True
    table = pa.table(
        {
            "row_id": pa.array(batch.row_id),
            **vector_columns(vectors, without),
            "n_tokens": pa.array(batch.n_tokens),
            "truncated": pa.array((batch.n_tokens > info.max_length) & (not windowed)),
            "error": pa.array([errors.get(row) for row in range(len(batch))], pa.string()),
            "text_hash": column_of_hashes((batch.origins or Origins.unknown(len(batch))).hashes),
            **batch.kept,
        }
    )
    complete = info.model_copy(update={"digests": digests_of(table)})
    metadata = {_KEY: complete.model_dump_json().encode()}
    if batch.features:  # as the datasets library writes them, which then reads images as images and labels as labels
        features = {name: json.loads(feature) for name, feature in batch.features.items()}
        metadata[b"huggingface"] = json.dumps({"info": {"features": features}}).encode()
    return table.replace_schema_metadata(metadata)


def info_of(metadata: dict[bytes, bytes] | None) -> ShardInfo:
    """What made a shard, from its schema's metadata.

    Raises:
        ValueError: the metadata is not embedmill's.
    """
    if not metadata or _KEY not in metadata:
        raise ValueError("not a shard: its metadata has no embedmill")
    return ShardInfo.model_validate_json(metadata[_KEY])


def commit(table: pa.Table, shard: Location, staging: Location) -> bool:
    """Write a shard so that it is there in full or not at all, also if the power goes. Of two workers that write the
    same shard the first one wins, and the other's file is dropped; on a file system without hard links the last one
    wins, and each is told that its file was put there.

    Args:
        table: what ``table_of`` returned.
        shard: where the shard belongs.
        staging: a folder of the same file system for the unfinished file.

    Returns:
        Whether this call's file was put there.
    """
    return shard.create(lambda file: _write(table, file), staging)


def _write(table: pa.Table, file: IO[bytes]) -> None:
    pq.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=False,
        write_page_checksum=True,
        use_byte_stream_split=_split_columns(table.schema),
    )


def _split_columns(schema: pa.Schema) -> list[str]:
    """Where BYTE_STREAM_SPLIT makes vectors a tenth smaller: float32's leaf. Not every reader knows it for float16."""
    leaf = "embedding" if "embedding" in schema.names else "weights"
    kind = schema.field(leaf).type
    while pa.types.is_nested(kind):
        leaf, kind = f"{leaf}.list.element", kind.value_type
    return [leaf] if pa.types.is_float32(kind) else []


@contextmanager
def open_file(shard: Location) -> Iterator[pq.ParquetFile]:
    """A shard's file, of which nothing but the footer is read yet.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no Parquet file.
        StoreError: its object store refuses, or does not answer.
    """
    with ExitStack() as stack:
        source = stack.enter_context(shard.reading())
        yield stack.enter_context(pq.ParquetFile(source, page_checksum_verification=True))


def read_info(shard: Location) -> ShardInfo:
    """What a shard's footer says; its rows are not read.

    Raises:
        ValueError: the file is no shard.
    """
    with open_file(shard) as file:
        return info_of(file.schema_arrow.metadata)
