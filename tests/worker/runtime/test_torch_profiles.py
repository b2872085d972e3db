"""The micro-batches of PyTorch on a GPU, without one."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from contract.plan import PackedProfile
from tests.contract.samples import engine_spec
from worker.runtime.layout import Packed
from worker.runtime.microbatch import BLOCK, cut_packed
from worker.runtime.packed_model import INPUTS
from worker.runtime.torch_gpu import filling, profiles

H100 = 132


def told(max_length: int) -> list[tuple[str, int | None]]:
    return [(str(profile), profile.longest) for profile in profiles(max_length, H100)]


def test_an_h100s_profiles_have_few_rows_where_rows_are_long() -> None:
    short = ("2112x33792", 128)
    assert told(128) == [short, ("528x8448", 128), ("132x2112", 128)]
    assert told(256) == [short, ("528x33792", 256), ("528x8448", 256), ("132x2112", 256)]
    assert told(512) == [short, ("528x33792", 512), ("132x33792", 512), ("528x8448", 512), ("132x2112", 512)]
    usual = [short, ("528x33792", 512), ("528x8448", 512), ("132x2112", 512)]
    assert sorted(told(4096)) == sorted([*usual, ("66x33792", 4096), ("66x8448", 4096)])
    assert sorted(told(8192)) == sorted([*usual, ("66x33792", 8192), ("66x8448", 8192)])
    assert sorted(told(32768)) == sorted([*usual, ("66x33792", 32768), ("66x8448", 8448)])


@pytest.mark.parametrize("multiprocessors", [16, 46, 108, 132])
@pytest.mark.parametrize("max_length", [3, 8, 12, 15, 16, 128, 129, 256, 257, 512, 1024, 8192, 32768])
def test_each_profile_is_warmed_up_and_any_row_is_taken(max_length: int, multiprocessors: int) -> None:
    """A profile that no warm-up reaches would be compiled in the middle of a job."""
    spec = engine_spec(max_length=max_length)
    layout = Packed(spec, profiles(max_length, multiprocessors), INPUTS)
    assert len(set(map(str, layout.profiles))) == len(layout.profiles) <= 6
    assert len({profile.tokens for profile in layout.profiles}) <= 3 + (max_length > 256 * multiprocessors)
    for number, profile in enumerate(layout.profiles):
        batch, micro = filling(spec, profile, number)
        buffers = {name: np.empty(layout.sizes()[0], np.int32) for name in INPUTS}
        shapes = layout.fill(batch, micro, buffers)
        assert {name: shape[0] for name, shape in shapes.items()} == layout.sizes_of(number)
        assert np.diff(buffers["cu_seqlens"][: profile.input_rows(max_length) + 1]).max() <= (profile.longest or 0)
    for length in {1, max_length // 2, max_length} - {0}:
        (micro,) = layout.cut(np.array([length]))
        assert (layout.profiles[micro.profile].longest or 0) >= length


def one_for_all_lengths(max_length: int) -> list[PackedProfile]:
    """Profiles without those that have few rows, or none but short ones."""
    sizes = [(2112, 33792, min(128, max_length)), (528, max(33792, max_length), max_length)]
    return [PackedProfile(*one) for one in (*sizes, (528, 8448, max_length), (132, 2112, max_length))]


def lengths_of(kind: str, max_length: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Of a batch's rows, of 100,000 to 500,000 tokens."""
    rows = 60_000
    short, long = random.integers(8, 65, rows), random.integers(max_length // 2, max_length + 1, rows)
    drawn = {
        "short": short,
        "reviews": random.integers(48, 513, rows),
        "spread": random.lognormal(np.log(280) - 0.5, 1, rows).astype(int) + 1,
        "longest": np.full(rows, max_length),
        "documents": random.exponential(max_length / 4, rows).astype(int) + 1,
        "one in ten is long": np.where(random.random(rows) < 0.1, long, short),
    }[kind].clip(max=max_length)
    return drawn[: np.searchsorted(drawn.cumsum(), random.integers(100_000, 500_000)) + 1]


KINDS = ("short", "reviews", "spread", "longest", "documents", "one in ten is long")


def cost(lengths: npt.NDArray[np.int64], of: Sequence[PackedProfile]) -> float:
    """Tokens that take as long as the batch: those that are computed, 2,112 for each micro-batch, and the blocks."""
    chosen = [of[micro.profile] for micro in cut_packed(lengths, of)]
    return sum(one.tokens + 2112 + BLOCK * one.attention_blocks for one in chosen)


@pytest.mark.parametrize(("max_length", "gain"), [(512, 1.0), (4096, 0.95), (8192, 0.88)])
def test_more_profiles_cost_no_batches_more_and_long_rows_less(max_length: int, gain: float) -> None:
    random, costs = np.random.default_rng(max_length), {}
    for kind in KINDS:
        batches = [lengths_of(kind, max_length, random) for _ in range(4)]
        before, now = (
            sum(cost(one, of) for one in batches)
            for of in (one_for_all_lengths(max_length), profiles(max_length, H100))
        )
        costs[kind] = now / before
    assert max(costs.values()) < 1.005, costs
    assert max(costs[kind] for kind in ("reviews", "spread", "longest", "documents")) < gain, costs


@pytest.mark.parametrize(
    ("max_length", "length", "profile"),
    [(512, 280, "132x33792"), (512, 512, "132x33792"), (512, 150, "528x33792"), (512, 36, "2112x33792"),
     (8192, 280, "528x33792"), (8192, 600, "66x33792"), (8192, 8192, "66x33792"), (8192, 36, "2112x33792")],
)  # fmt: skip
def test_rows_of_a_length_get_the_profile_that_is_made_for_them(max_length: int, length: int, profile: str) -> None:
    every = profiles(max_length, H100)
    first = cut_packed([length] * (200_000 // length), every)[0]
    assert str(every[first.profile]) == profile
