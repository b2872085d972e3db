"""The benchmark as tables, which a terminal of 80 columns shows in full."""

import itertools
from collections.abc import Sequence

from rich.table import Table

from engine_build.bench.records import BenchRecord

_SPEED = ("ms", "× FP32", "seq/s", "TFLOP/s", "chip")
_DISTANCE = ("MSE", "relative", "lowest cosine", "largest")


def tables(records: Sequence[BenchRecord]) -> list[Table]:
    """Records for people: for each model and GPU how fast, and then how far from PyTorch FP32.

    Args:
        records: those of one model and GPU one after the other.
    """
    made = []
    for title, group in itertools.groupby(records, lambda one: f"{one.model} on {one.gpu}"):
        same = list(group)
        made.append(_speed(f"{title}: how fast", same))
        if any(one.mse is not None for one in same):
            made.append(_distance(f"{title}: how far from PyTorch FP32", same))
    return made


def _speed(title: str, records: Sequence[BenchRecord]) -> Table:
    table = _table(title, _SPEED)
    fp32 = {one.shape: one.ms for one in records if one.system == "torch-fp32"}
    for one in records:
        table.add_row(
            str(one.shape),
            one.system,
            f"{one.ms:.3f}",
            f"{fp32[one.shape] / one.ms:.2f}" if one.shape in fp32 else "",
            f"{one.sequences_per_s:,.0f}",
            f"{one.tflops:.0f}",
            f"{one.chip_share:.0%}" if one.chip_share else "",
        )
    return table


def _distance(title: str, records: Sequence[BenchRecord]) -> Table:
    table = _table(title, _DISTANCE)
    for one in (one for one in records if one.mse is not None):
        table.add_row(
            str(one.shape),
            one.system,
            f"{one.mse:.2e}",
            f"{one.relative_mse:.2e}",
            f"{one.min_cosine:.7f}",
            f"{one.max_difference:.1e}",
        )
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("batch", "system"):
        table.add_column(heading, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
