"""The benchmark as tables, which a terminal of 80 columns shows in full."""

import itertools
from collections.abc import Sequence

from rich.table import Table

from engine_build.bench import Record, Shape


def tables(records: Sequence[Record]) -> list[Table]:
    """Records for people: for each model and GPU how fast, and then how far from PyTorch FP32."""
    made = []
    for of, group in itertools.groupby(records, lambda one: f"{one.model} on {one.gpu}"):
        speed = Table(title=f"{of}: how fast", title_justify="left")
        distance = Table(title=f"{of}: how far from PyTorch FP32", title_justify="left")
        for table, headings in (
            (speed, ("ms", "× FP32", "seq/s", "TFLOP/s", "chip")),
            (distance, ("MSE", "relative", "lowest cosine", "largest")),
        ):
            table.add_column("batch", no_wrap=True)
            table.add_column("system", no_wrap=True)
            for heading in headings:
                table.add_column(heading, justify="right", no_wrap=True)
        rows = list(group)
        slowest = {(one.batch, one.length): one.ms for one in rows if one.system == "torch-fp32"}
        for one in rows:
            shape, reference = str(Shape(one.batch, one.length)), slowest.get((one.batch, one.length))
            speed.add_row(
                *(shape, one.system, f"{one.ms:.3f}", f"{reference / one.ms:.2f}" if reference else ""),
                *(
                    f"{one.sequences_per_s:,.0f}",
                    f"{one.tflops:.0f}",
                    f"{one.chip_share:.0%}" if one.chip_share else "",
                ),
            )
            if one.mse is not None:
                distance.add_row(
                    *(shape, one.system, f"{one.mse:.2e}", f"{one.relative_mse:.2e}"),
                    *(f"{one.min_cosine:.7f}", f"{one.max_difference:.1e}"),
                )
        made += [speed, distance] if distance.rows else [speed]
    return made
