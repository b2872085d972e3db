"""The pictures: what they show, and that nothing that a job can hold keeps them from being drawn."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from contract.compare import Comparison
from tests.verify.jobs import shard
from verify.comparison import ComparedRow
from verify.pictures import error_by_length, error_histogram, length_histogram, throughput
from verify.sample import SampledRow
from verify.throughput import throughput_of


def compared(error: float, *, n_tokens: int = 40, problem: str = "") -> ComparedRow:
    row = SampledRow(row_id=1, batch=0, index=1, n_tokens=n_tokens, truncated=False, stratum="33-64")
    return ComparedRow(row, "fp32", Comparison(1, error, error, 1 - error / 2, error, 0), 1.0, "", problem, "some text")


def shapes(svg: str, colour: str) -> int:
    """How many bars and points have one of the page's colours, bars without a height left out."""
    tree = ET.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
    bars = [part for part in tree.iter("path") if len(set(re.findall(r"[\d.]+ ([\d.]+)", part.get("d", "")))) > 1]
    return sum(f"var(--{colour})" in part.get("style", "") for part in [*bars, *tree.iter("use")])


def test_each_row_is_a_point_and_failing_ones_look_different() -> None:
    rows = [compared(10.0**-power, n_tokens=2**power) for power in range(6, 12)]
    one_more = [*rows, compared(0.5, problem="cosine 0.75, below 0.99999")]
    assert shapes(error_by_length(one_more), "bad") - shapes(error_by_length(rows), "bad") >= 1
    fewer = error_by_length(rows[:-1])
    assert shapes(error_by_length(rows), "good") > shapes(fewer, "good")


def test_the_histograms_bars_are_as_high_as_there_are_rows() -> None:
    svg = error_histogram([compared(1e-12)] * 30 + [compared(1e-3, problem="relative MSE")] * 2)
    assert shapes(svg, "good") > 0
    assert shapes(svg, "bad") > 0
    assert "rows" in re.findall(r">([^<>]+)</text>", svg)


def test_vectors_without_any_error_and_of_no_number_are_no_obstacle() -> None:
    assert error_histogram([compared(0.0)])
    assert error_by_length([compared(0.0)])
    assert error_histogram([compared(np.nan)]) == error_by_length([compared(np.nan)]) == ""
    assert error_histogram([]) == error_by_length([]) == ""


def test_where_long_texts_have_windows_none_is_drawn_as_truncated() -> None:
    lengths = {10: 5, 900: 3}
    assert shapes(length_histogram(lengths, 512), "bad") > 0
    assert shapes(length_histogram(lengths, None), "bad") == 0


def test_many_points_are_drawn_as_an_image() -> None:
    random = np.random.default_rng(0)
    lengths, errors = random.integers(1, 3000, 20_000).tolist(), (10 ** random.normal(-12, 1, 20_000)).tolist()
    svg = error_by_length([compared(error, n_tokens=tokens) for error, tokens in zip(errors, lengths, strict=True)])
    assert "data:image/png;base64," in svg
    assert len(svg) < 300_000


@pytest.mark.parametrize("lengths", [{1: 1}, {512: 7}, {513: 7}, {512: 1, 513: 1}, {3: 1, 4: 2, 1_000_000: 3, 0: 9}])
def test_truncated_rows_have_bars_of_their_own(lengths: dict[int, int]) -> None:
    svg = length_histogram(lengths, 512)
    assert bool(shapes(svg, "good")) == any(0 < length <= 512 for length in lengths)
    assert bool(shapes(svg, "bad")) == any(length > 512 for length in lengths)


def test_without_a_length_there_is_no_picture() -> None:
    assert length_histogram({}, 512) == length_histogram({0: 5}, 512) == ""


def test_a_shard_that_took_no_time_is_left_out() -> None:
    assert throughput(throughput_of([shard(0, 0)])) == throughput(throughput_of([])) == ""
    assert throughput(throughput_of([shard(0, 1), shard(0, 0)]))


def test_a_pause_is_a_line() -> None:
    without, with_one = (
        throughput(throughput_of([shard(0, 10), shard(10, 10)])),
        throughput(throughput_of([shard(0, 10), shard(90, 10)])),
    )
    assert "stroke-dasharray" not in without
    assert "stroke-dasharray" in with_one


@pytest.mark.parametrize(("seconds", "unit"), [(10, "seconds"), (1000, "minutes"), (1e5, "hours"), (1e6, "days")])
def test_the_time_has_a_unit_that_fits(seconds: float, unit: str) -> None:
    assert f">{unit}</text>" in throughput(throughput_of([shard(0, seconds)]))


def test_a_picture_brings_no_id_twice_and_no_style_of_its_own() -> None:
    page = error_histogram([compared(1e-12)]) + length_histogram({5: 5}, 512) + throughput(throughput_of([shard(0, 1)]))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) <= {
        pair for name in ids for pair in ((name, ""), ("", name))
    }
    assert "<style" not in page
    assert "font-family" not in page
    assert not re.search(r"#[0-9a-f]{6}\b", page), "a colour that light or dark does not change"
