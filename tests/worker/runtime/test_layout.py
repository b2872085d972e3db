"""What goes into a plan's inputs. That packed inputs give the right vectors is tested where the packed graph is."""

import numpy as np
import pytest

from contract.batch import Batch
from contract.graph import INPUTS
from contract.plan import PACKED_INPUTS, PackedProfile, PaddedProfile
from contract.tokens import TokenRows
from tests.contract.samples import engine_spec
from worker.runtime.interface import Gathered
from worker.runtime.layout import Packed, Padded
from worker.runtime.microbatch import MicroBatch

WIDTH = 12


def batch_of(*lengths: int) -> Batch:
    """Row r's tokens are 100·r + 1, 100·r + 2 and so on."""
    ids = np.concatenate([100 * row + 1 + np.arange(length, dtype=np.int32) for row, length in enumerate(lengths)])
    n_tokens = np.array(lengths, np.int32)
    return Batch("job", 0, "engine", np.arange(len(lengths)), TokenRows(ids, n_tokens), n_tokens)


def filled(layout: Padded | Packed, batch: Batch, micro: MicroBatch) -> dict[str, np.ndarray]:
    """The inputs, from buffers that hold rubbish."""
    buffers = {name: np.full(layout.sizes()[0], -7, np.int32) for name in layout.inputs}
    shapes = layout.fill(batch, micro, buffers)
    return {name: buffers[name][: np.prod(shape)].reshape(shape) for name, shape in shapes.items()}


def test_padded_rows_are_cut_at_the_micro_batchs_length() -> None:
    layout = Padded(engine_spec(), [PaddedProfile.parse("1-4x1-12")])
    inputs = filled(layout, batch_of(3, 5, 2), MicroBatch(np.array([1, 0]), length=8, tokens=16))
    assert set(inputs) == set(INPUTS)
    assert inputs["input_ids"].tolist() == [[101, 102, 103, 104, 105, 0, 0, 0], [1, 2, 3, 0, 0, 0, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]


def test_rows_of_padding_have_real_tokens() -> None:
    layout = Padded(engine_spec(), [PaddedProfile.parse("4x12")])
    inputs = filled(layout, batch_of(3, 5), MicroBatch(np.array([1, 0]), length=12, tokens=48))
    assert inputs["attention_mask"].sum(axis=1).tolist() == [5, 3, 5, 5]
    assert layout.vectors(MicroBatch(np.array([1, 0]), length=12, tokens=48)) == 2


def test_packed_rows_lie_end_to_end() -> None:
    layout = Packed(engine_spec(max_length=WIDTH), [PackedProfile(3, 10)])
    inputs = filled(layout, batch_of(3, 5, 2), MicroBatch(np.array([1, 0, 2]), length=5, tokens=10))
    assert set(inputs) == set(PACKED_INPUTS)
    assert inputs["input_ids"].tolist() == [101, 102, 103, 104, 105, 1, 2, 3, 201, 202]
    assert inputs["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert inputs["row_of_token"].tolist() == [0] * 5 + [1] * 3 + [2] * 2
    assert inputs["token_type_ids"].tolist() == [0] * 10
    assert inputs["cu_seqlens"].tolist() == [0, 5, 8, 10, 10]
    assert inputs["longest"].shape == (5,)
    cls = Packed(engine_spec(max_length=WIDTH, pooling="cls"), [PackedProfile(3, 10)])
    fewer = filled(cls, batch_of(3, 5, 2), MicroBatch(np.array([1, 0, 2]), length=5, tokens=10))
    assert {name: values.tolist() for name, values in fewer.items()} == {
        name: values.tolist() for name, values in inputs.items() if name != "row_of_token"
    }


def test_padding_behind_packed_rows_is_few_rows() -> None:
    layout = Packed(engine_spec(max_length=WIDTH), [PackedProfile(6, 24)])
    inputs = filled(layout, batch_of(5, 3), MicroBatch(np.array([0, 1]), length=5, tokens=24))
    assert inputs["cu_seqlens"].tolist() == [0, 5, 8, 13, 18, 23, 24, 24, 24]


@pytest.mark.parametrize("seed", range(10))
def test_every_token_of_a_packed_shape_is_some_rows_and_no_row_is_too_long(seed: int) -> None:
    random = np.random.default_rng(seed)
    profiles = [PackedProfile(8, 60), PackedProfile(3, 13)]
    layout = Packed(engine_spec(max_length=WIDTH, pad_id=9), profiles)
    batch = batch_of(*random.integers(0, WIDTH + 1, 50))
    for micro in layout.cut(batch.lengths):
        inputs = filled(layout, batch, micro)
        starts, rows = inputs["cu_seqlens"], profiles[micro.profile].input_rows(WIDTH)
        lengths = np.diff(starts)
        real = batch.lengths[micro.rows].sum()
        assert (starts[0], starts[-1], len(lengths)) == (0, micro.tokens, rows)
        assert lengths.max() == len(inputs["longest"]) <= WIDTH
        assert (lengths[: len(micro.rows)] == batch.lengths[micro.rows]).all()
        assert (np.bincount(inputs["row_of_token"], minlength=rows) == lengths).all()
        assert (inputs["input_ids"][real:] == 9).all()


def test_token_level_vectors_come_back_to_their_rows() -> None:
    spec, batch = engine_spec(pooling="tokens", hidden=1, max_length=WIDTH), batch_of(2, 3)
    packed, padded = Gathered(spec, batch.lengths), Gathered(spec, batch.lengths)
    layout = Packed(spec, [PackedProfile(2, 6)])
    micro = MicroBatch(np.array([1, 0]), length=3, tokens=6)
    assert layout.vectors(micro) == 6
    layout.gather(micro, np.array([[10], [11], [12], [20], [21], [-1]], np.float32), batch.lengths, packed)
    assert packed.vectors.tolist() == [[20], [21], [10], [11], [12]]
    rectangle = np.array([[10], [11], [12], [20], [21], [-1]], np.float32)
    Padded(spec, [PaddedProfile.parse("1-32x1-512")]).gather(micro, rectangle, batch.lengths, padded)
    assert padded.vectors.tolist() == packed.vectors.tolist()
