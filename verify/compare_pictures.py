"""The pictures of a comparison."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from verify.difference import Difference
from verify.pictures import BAD, GOOD, INK, powers_of_ten, svg


def kept_bars(found: Difference) -> str:
    """How many sampled rows keep how many of their neighbours."""
    numbers = np.arange(len(found.kept))
    wanted = found.least * found.neighbours

    def draw(axes: Axes) -> None:
        axes.bar(numbers, found.kept, color=[GOOD if number >= wanted else BAD for number in numbers], width=0.8)
        axes.set(xlabel=f"of {found.neighbours} neighbours kept", ylabel="rows")
        axes.set_xticks(numbers)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(visible=False, axis="x")

    return svg("kept", draw)


def distance_histogram(found: Difference) -> str:
    """How many rows are how far apart, by 1 less the cosine; empty where the vectors have other lengths."""
    if found.cosines is None:
        return ""
    edges, rows = np.array(found.cosines.histogram).T

    def draw(axes: Axes) -> None:
        axes.stairs(rows[:-1], edges, fill=True, color=GOOD)
        axes.axvline(max(1 - found.cosines.median, edges[0]), color=INK, linewidth=1, linestyle="--")  # type: ignore[union-attr]
        axes.set_xscale("log")
        powers_of_ten(axes.xaxis)
        axes.set(xlabel="1 − cosine", ylabel="rows", xlim=(edges[0], edges[-1]))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(visible=False, axis="x")

    return svg("distances", draw)
