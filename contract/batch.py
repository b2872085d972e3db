r"""One batch of tokenized rows, as it travels through Redis.

The bytes are an Arrow IPC stream, its buffers compressed with LZ4, so that padding costs next to nothing on the wire::

    schema   row_id          int64
             input_ids       fixed_size_list<int32>[width]    padded with the model's pad id
             attention_mask  fixed_size_list<int32>[width]    1 for a token, 0 for padding
             token_type_ids  fixed_size_list<int32>[width]    0
             n_tokens        int32                            the text's, before truncation; 0 of a row that is not
                                                              computed
             text_hash       fixed_size_binary[16]            the text's, zeros without a text
             from_job        int32                            the earlier job that has the row's vector; -1 for none
             from_batch      int32                            which of its batches has it
             from_row        int32                            and the row's index there
             keep:<name>     any                              a column of the dataset that goes into the shard as it is;
                                                              its metadata may hold a ``feature``, as JSON
    metadata embedmill.job, embedmill.batch, embedmill.engine (the engine's fingerprint), and if it is
             not 0 embedmill.prompt_tokens

``width`` says how wide a batch is: as the engine's longest row where that has up to 512 tokens, and otherwise as the
batch's. A wide batch has several record batches, so that neither side ever holds all of its padding: in memory rows lie
end to end (``contract.tokens``).

A row without a text (null or blank in the dataset: ``contract.blank``) has ``n_tokens`` 0 and an empty mask. It is not
computed: its embedding is null. Nor is a row computed whose text an earlier row of the batch has, or an earlier job
(``contract.origins``): it gets that one's vector and ``n_tokens``.

Where long texts are cut into windows, a text has as many consecutive rows as windows, all with its ``row_id`` and its
``n_tokens``. Columns that are kept are in the first of them and null in the others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.graph import INPUTS
from contract.origins import BYTES, Origins, fixed_of_hashes, hashes_of_fixed
from contract.tokens import Int32, TokenRows
from contract.words import count

_SHORT = 512
"""Tokens: of an engine with rows of at most as many, batches are as wide as its longest row may be."""
_STEP = 128
"""What the width of any other engine's batches is a multiple of."""
_CELLS = 1 << 19
"""Most token ids of a record batch, padding included: 1,024 rows of 512. Each of its three arrays has 2 MiB then."""
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""What an Arrow stream ends with: without it record batches may be missing."""

_FROM = ("from_job", "from_batch", "from_row")

_KEEP = "keep:"
_FEATURE = b"feature"


def width(max_length: int, longest: int) -> int:
    """Tokens that a batch's rows are padded to on the wire.

    Args:
        max_length: most tokens of a row of the engine.
        longest: of a row of the batch.

    Example: 512 for an engine of 512, whatever the rows; for one of 8,192 and a longest row of 700 tokens 768; 1 where
    no row is computed.
    """
    if not longest:
        return 1
    return max_length if max_length <= _SHORT else min(max_length, max(1, -(-longest // _STEP)) * _STEP)


def _schema(width: int) -> pa.Schema:
    matrix = pa.list_(pa.field("item", pa.int32(), nullable=False), width)
    return pa.schema(
        [
            pa.field("row_id", pa.int64(), nullable=False),
            *(pa.field(name, matrix, nullable=False) for name in INPUTS),
            pa.field("n_tokens", pa.int32(), nullable=False),
            pa.field("text_hash", pa.binary(BYTES), nullable=False),
            *(pa.field(name, pa.int32(), nullable=False) for name in _FROM),
        ]
    )


@dataclass(frozen=True, eq=False)
class Batch:
    """A contiguous slice of a dataset, tokenized."""

    job: str
    number: int
    engine: str
    """Fingerprint of the engine that it was tokenized for."""
    row_id: npt.NDArray[np.int64]
    """``[n]``, the row's index in the dataset; a text's windows share one"""
    tokens: TokenRows
    """``n`` rows"""
    n_tokens: Int32
    """``[n]``, special tokens counted, before truncation; of the whole text, also in each of its windows"""
    kept: Mapping[str, pa.Array] = field(default_factory=dict)
    """Columns of the dataset that go into the shard, each of ``n`` values."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Of those of them that are more than their Arrow type, such as images and labels: the feature of the ``datasets``
    library, as JSON."""
    prompt_tokens: int = 0
    """Tokens at each row's beginning that are computed and left out of the pooling: those of a prompt."""
    origins: Origins | None = None
    """Of ``n`` rows; None where no text is known, and each row with tokens is computed."""

    def __len__(self) -> int:
        return len(self.row_id)

    def take(self, rows: npt.NDArray[np.intp]) -> "Batch":
        """The same batch with only the rows of these indices, in this order."""
        kept = {name: values.take(pa.array(rows)) for name, values in self.kept.items()}
        some = self.row_id[rows], self.tokens.take(rows), self.n_tokens[rows]
        origins = self.origins and self.origins.take(rows)
        return replace(self, row_id=some[0], tokens=some[1], n_tokens=some[2], kept=kept, origins=origins)

    @property
    def lengths(self) -> Int32:
        """``[n]`` int32: tokens of each row that are computed, that is after truncation."""
        return self.tokens.lengths

    @property
    def owners(self) -> npt.NDArray[np.intp]:
        """``[n]``: which text each row is a window of, counted from 0. Without windows 0, 1, 2, …"""
        return np.cumsum(np.diff(self.row_id, prepend=self.row_id[:1]) != 0)

    def to_bytes(self, max_length: int, pad_id: int) -> bytes:
        """The batch in the format above.

        Args:
            max_length: most tokens of a row of the engine.
            pad_id: the engine's.
        """
        wide = width(max_length, int(self.lengths.max(initial=0)))
        schema = self._schema_with_kept(wide)
        each = max(1, _CELLS // wide)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
            for start in range(0, max(1, len(self)), each):
                stream.write_batch(self._record(slice(start, start + each), schema, wide, pad_id))
        return sink.getvalue().to_pybytes()

    def _schema_with_kept(self, wide: int) -> pa.Schema:
        schema = _schema(wide)
        for name, values in self.kept.items():
            feature = {_FEATURE: self.features[name].encode()} if name in self.features else None
            schema = schema.append(pa.field(_KEEP + name, values.type, metadata=feature))
        metadata = {
            "embedmill.job": self.job,
            "embedmill.batch": str(self.number),
            "embedmill.engine": self.engine,
        }
        if self.prompt_tokens:
            metadata["embedmill.prompt_tokens"] = str(self.prompt_tokens)
        return schema.with_metadata(metadata)

    def _record(self, rows: slice, schema: pa.Schema, wide: int, pad_id: int) -> pa.RecordBatch:
        columns = [pa.array(self.row_id[rows])]
        for name, matrix in self.tokens.slice(rows).padded(wide, pad_id).items():
            flat = pa.array(matrix.reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type))
        columns += [pa.array(self.n_tokens[rows]), *self._origin_columns(rows)]
        columns += [values[rows] for values in self.kept.values()]
        return pa.record_batch(columns, schema=schema)

    def _origin_columns(self, rows: slice) -> list[pa.Array]:
        origins = self.origins or Origins.unknown(len(self))
        numbers = (origins.job, origins.batch, origins.row)
        return [fixed_of_hashes(origins.hashes[rows]), *(pa.array(values[rows]) for values in numbers)]

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Batch":
        """The inverse of ``to_bytes``.

        Raises:
            ValueError: the bytes are no batch of this format.
        """
        try:
            with pa.ipc.open_stream(payload) as stream:
                more = _kept_columns(stream.schema)
                parts = [_Part.of(record, more) for record in stream]
                metadata = {key.decode(): value.decode() for key, value in (stream.schema.metadata or {}).items()}
                features = {name: (stream.schema.field(name).metadata or {}).get(_FEATURE) for name in more}
            if not parts or not payload.endswith(_END):
                raise ValueError("its end is missing")
            return cls(
                job=metadata["embedmill.job"],
                number=int(metadata["embedmill.batch"]),
                engine=metadata["embedmill.engine"],
                row_id=np.concatenate([part.row_id for part in parts]),
                tokens=TokenRows.joined([part.tokens for part in parts]),
                n_tokens=np.concatenate([part.n_tokens for part in parts]),
                prompt_tokens=int(metadata.get("embedmill.prompt_tokens", 0)),
                origins=Origins.joined([part.origins for part in parts]),
                kept={name.removeprefix(_KEEP): _joined([part.kept[name] for part in parts]) for name in more},
                features={
                    name.removeprefix(_KEEP): json.dumps(json.loads(feature))
                    for name, feature in features.items()
                    if feature
                },
            )
        # An OSError is what a damaged LZ4 frame gives.
        except (pa.ArrowException, OSError, StopIteration, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"no batch, but {count(len(payload), 'byte')}: {error}") from error


class _Part(NamedTuple):
    """A record batch's rows."""

    row_id: npt.NDArray[np.int64]
    tokens: TokenRows
    n_tokens: Int32
    origins: Origins
    kept: Mapping[str, pa.Array]

    @classmethod
    def of(cls, record: pa.RecordBatch, kept: Sequence[str]) -> "_Part":
        """Its arrays, without the padding."""
        record.validate(full=bool(kept))
        matrices = (record.column(name) for name in INPUTS)
        ids, mask, types = (one.values.to_numpy().reshape(len(record), one.type.list_size) for one in matrices)
        if types.any():
            raise ValueError("its token_type_ids are not all 0")
        return cls(
            record.column("row_id").to_numpy(),
            TokenRows.of_padded(ids, mask),
            record.column("n_tokens").to_numpy(),
            _origins(record),
            {name: record.column(name) for name in kept},
        )


def _origins(record: pa.RecordBatch) -> Origins:
    columns = (record.column(name).to_numpy() for name in _FROM)
    return Origins(hashes_of_fixed(record.column("text_hash")), *columns)


def _kept_columns(schema: pa.Schema) -> list[str]:
    """The names of the columns that are kept.

    Raises:
        ValueError: it is no batch's schema.
    """
    named = _schema(schema.field("input_ids").type.list_size)
    own, more = schema.names[: len(named)], schema.names[len(named) :]
    if not pa.schema([schema.field(name) for name in own]).equals(named) or not all(
        name.startswith(_KEEP) for name in more
    ):
        raise ValueError(f"its schema is {schema.remove_metadata()}")
    return more


def _joined(parts: Sequence[pa.Array]) -> pa.Array:
    return parts[0] if len(parts) == 1 else pa.chunked_array(parts).combine_chunks()
