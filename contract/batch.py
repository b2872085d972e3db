r"""One batch of tokenized rows, as it travels through Redis.

The bytes are an Arrow IPC stream of one record batch, its buffers compressed with LZ4, so that padding costs next to
nothing on the wire::

    schema   row_id          int64
             input_ids       fixed_size_list<int32>[length]   padded with the model's pad id
             attention_mask  fixed_size_list<int32>[length]   1 for a token, 0 for padding
             token_type_ids  fixed_size_list<int32>[length]
             n_tokens        int32                            before truncation; 0 for a row without a text
    metadata embedmill.job, embedmill.batch, embedmill.engine (the engine's fingerprint)

A row without a text (null in the dataset) has ``n_tokens`` 0 and an empty mask. It is not computed: its embedding is
null. An empty text is a text: it has its special tokens.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int32 = npt.NDArray[np.int32]

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
    """``[n]``, the row's place in the dataset."""
    input_ids: Int32
    """``[n, length]``"""
    attention_mask: Int32
    """``[n, length]``, ones first"""
    token_type_ids: Int32
    """``[n, length]``"""
    n_tokens: Int32
    """``[n]``, special tokens counted, before truncation"""

    def __len__(self) -> int:
        return len(self.row_id)

    def take(self, places: npt.NDArray[np.intp]) -> "Batch":
        """The same batch with the rows at these places only, in this order."""
        columns = {name: getattr(self, name)[places] for name in ("row_id", *_MATRICES, "n_tokens")}
        return replace(self, **columns)

    @property
    def lengths(self) -> Int32:
        """``[n]`` int32: tokens of each row that are computed, that is after truncation."""
        return np.minimum(self.n_tokens, np.int32(self.input_ids.shape[1]))

    def to_bytes(self) -> bytes:
        """The batch in the format above."""
        length = self.input_ids.shape[1]
        schema = _schema(length)
        columns = [pa.array(self.row_id)]
        for name in _MATRICES:
            values = pa.array(np.ascontiguousarray(getattr(self, name)).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(values, type=schema.field(name).type))
        columns.append(pa.array(self.n_tokens))
        metadata = {
            "embedmill.job": self.job,
            "embedmill.batch": str(self.number),
            "embedmill.engine": self.engine,
        }
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
                if not record.schema.equals(_schema(length)):
                    raise ValueError(f"its schema is {record.schema.remove_metadata()}")
                record.validate()
            columns = {name: record.column(name) for name in record.schema.names}
            return cls(
                job=metadata["embedmill.job"],
                number=int(metadata["embedmill.batch"]),
                engine=metadata["embedmill.engine"],
                row_id=columns["row_id"].to_numpy(),
                n_tokens=columns["n_tokens"].to_numpy(),
                **{name: columns[name].values.to_numpy().reshape(len(record), length) for name in _MATRICES},
            )
        # An OSError is what a damaged LZ4 frame gives.
        except (pa.ArrowException, OSError, StopIteration, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"{len(payload)} bytes are no batch: {error}") from error
