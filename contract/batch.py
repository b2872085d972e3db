r"""One batch of tokenized rows, as it travels through Redis.

The bytes are an Arrow IPC stream of one record batch, its buffers compressed with LZ4, so that padding costs next to
nothing on the wire::

    schema   row_id          int64
             input_ids       fixed_size_list<int32>[length]   padded with the model's pad id
             attention_mask  fixed_size_list<int32>[length]   1 for a token, 0 for padding
             token_type_ids  fixed_size_list<int32>[length]
             n_tokens        int32                            the text's, before truncation; 0 without a text
             keep:<name>     any                              a column of the dataset that goes into the shard as it is;
                                                              its metadata may hold a ``feature``, as JSON
    metadata embedmill.job, embedmill.batch, embedmill.engine (the engine's fingerprint), and if it is
             not 0 embedmill.prompt_tokens

A row without a text (null or blank in the dataset: ``contract.blank``) has ``n_tokens`` 0 and an empty mask. It is not
computed: its embedding is null.

Where long texts are cut into windows, a text has as many consecutive rows as windows, all with its ``row_id`` and its
``n_tokens``. Columns that are kept are in the first of them and null in the others.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.words import count

Int32 = npt.NDArray[np.int32]

_KEEP = "keep:"
_FEATURE = b"feature"

_MATRICES = ("input_ids", "attention_mask", "token_type_ids")


def _schema(length: int) -> pa.Schema:
    matrix = pa.list_(pa.field("item", pa.int32(), nullable=False), length)
    return pa.schema(
        [
            pa.field("row_id", pa.int64(), nullable=False),
            *(pa.field(name, matrix, nullable=False) for name in _MATRICES),
            pa.field("n_tokens", pa.int32(), nullable=False),
        ]
    )


@dataclass(frozen=True, eq=False)
class Batch:
    """A contiguous slice of a dataset, tokenized and padded."""

    job: str
    number: int
    engine: str
    """Fingerprint of the engine that it was tokenized for."""
    row_id: npt.NDArray[np.int64]
    """``[n]``, the row's index in the dataset; a text's windows share one"""
    input_ids: Int32
    """``[n, length]``"""
    attention_mask: Int32
    """``[n, length]``, ones first"""
    token_type_ids: Int32
    """``[n, length]``"""
    n_tokens: Int32
    """``[n]``, special tokens counted, before truncation; of the whole text, also in each of its windows"""
    kept: Mapping[str, pa.Array] = field(default_factory=dict)
    """Columns of the dataset that go into the shard, each of ``n`` values."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Of those of them that are more than their Arrow type, such as images and labels: the feature of the ``datasets``
    library, as JSON."""
    prompt_tokens: int = 0
    """Tokens at each row's beginning that are computed and left out of the pooling: those of a prompt."""

    def __len__(self) -> int:
        return len(self.row_id)

    def take(self, rows: npt.NDArray[np.intp]) -> "Batch":
        """The same batch with only the rows of these indices, in this order."""
        columns = {name: getattr(self, name)[rows] for name in ("row_id", *_MATRICES, "n_tokens")}
        return replace(self, **columns, kept={name: values.take(pa.array(rows)) for name, values in self.kept.items()})

    @property
    def lengths(self) -> Int32:
        """``[n]`` int32: tokens of each row that are computed, that is after truncation."""
        return self.attention_mask.sum(axis=1, dtype=np.int32)

    @property
    def owners(self) -> npt.NDArray[np.intp]:
        """``[n]``: which text each row is a window of, counted from 0. Without windows 0, 1, 2, …"""
        return np.cumsum(np.diff(self.row_id, prepend=self.row_id[:1]) != 0)

    def to_bytes(self) -> bytes:
        """The batch in the format above."""
        length = self.input_ids.shape[1]
        schema = _schema(length)
        columns = [pa.array(self.row_id)]
        for name in _MATRICES:
            values = pa.array(np.ascontiguousarray(getattr(self, name)).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(values, type=schema.field(name).type))
        columns += [pa.array(self.n_tokens), *self.kept.values()]
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
        record = pa.record_batch(columns, schema=schema.with_metadata(metadata))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, record.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
            stream.write_batch(record)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Batch":
        """The inverse of ``to_bytes``. The arrays are read-only views of the decoded buffers.

        Raises:
            ValueError: the bytes are no batch of this format.
        """
        try:
            with pa.ipc.open_stream(payload) as stream:
                record = stream.read_next_batch()
                metadata = {key.decode(): value.decode() for key, value in (record.schema.metadata or {}).items()}
                length = record.schema.field("input_ids").type.list_size
                named = _schema(length)
                own, more = record.schema.names[: len(named)], record.schema.names[len(named) :]
                if not pa.schema([record.schema.field(name) for name in own]).equals(named) or not all(
                    name.startswith(_KEEP) for name in more
                ):
                    raise ValueError(f"its schema is {record.schema.remove_metadata()}")
                record.validate(full=bool(more))
            columns = {name: record.column(name) for name in record.schema.names}
            return cls(
                job=metadata["embedmill.job"],
                number=int(metadata["embedmill.batch"]),
                engine=metadata["embedmill.engine"],
                row_id=columns["row_id"].to_numpy(),
                n_tokens=columns["n_tokens"].to_numpy(),
                prompt_tokens=int(metadata.get("embedmill.prompt_tokens", 0)),
                kept={name.removeprefix(_KEEP): columns[name] for name in more},
                features={
                    name.removeprefix(_KEEP): json.dumps(json.loads(feature))
                    for name in more
                    if (feature := (record.schema.field(name).metadata or {}).get(_FEATURE))
                },
                **{name: columns[name].values.to_numpy().reshape(len(record), length) for name in _MATRICES},
            )
        # An OSError is what a damaged LZ4 frame gives.
        except (pa.ArrowException, OSError, StopIteration, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"no batch, but {count(len(payload), 'byte')}: {error}") from error
