"""The micro-batches of PyTorch on a GPU, without one."""

import numpy as np
import pytest

from tests.contract.samples import engine_spec
from worker.runtime.layout import Packed
from worker.runtime.packed_model import INPUTS
from worker.runtime.torch_gpu import filling, profiles


@pytest.mark.parametrize("multiprocessors", [16, 46, 108, 132])
@pytest.mark.parametrize("max_length", [3, 8, 12, 15, 16, 128, 129, 256, 512, 8192])
def test_each_profile_is_warmed_up_and_any_row_is_taken(max_length: int, multiprocessors: int) -> None:
    """A profile that no warm-up reaches would be compiled in the middle of a job."""
    spec = engine_spec(max_length=max_length)
    layout = Packed(spec, profiles(max_length, multiprocessors), INPUTS)
    for number, profile in enumerate(layout.profiles):
        microbatches = layout.cut(filling(spec, profile).lengths)
        assert [micro.profile for micro in microbatches] == [number]
    (longest,) = layout.cut(np.array([max_length]))
    assert (layout.profiles[longest.profile].longest or max_length) >= max_length
