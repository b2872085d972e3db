"""The report's pictures, each a piece of SVG that takes its colours from the page, so that light and dark both work."""

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from contract.compare import TOLERANCES
from verify.comparison import ComparedRow, row_limit
from verify.throughput import Throughput

# On its first run it logs that it makes a list of the fonts, which users need not know.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

INK, _GRID, GOOD, BAD = "#000001", "#000002", "#000003", "#000004"
_COLOURS = {INK: "var(--ink)", _GRID: "var(--line)", GOOD: "var(--good)", BAD: "var(--bad)"}
"""What matplotlib draws with → what the page replaces it by."""

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "embedmill",  # one report, one file: no random ids
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

_SIZE = (5.2, 3.1)
"""Of a picture, inches of 72 points."""
_POINTS = 4000
"""More of them are drawn as an image: as shapes they would make the page heavy."""
_FLOOR = 1e-18
"""Where vectors that agree to the last bit are drawn: a logarithmic scale has no zero."""


def error_histogram(compared: Sequence[ComparedRow]) -> str:
    """How many sampled rows have which relative MSE; empty if none has one."""
    good, bad = _errors(compared, wrong=False)[1], _errors(compared, wrong=True)[1]
    both = np.concatenate([good, bad])
    if not len(both):
        return ""
    low, high, limits = _scale(both, compared)
    edges = np.geomspace(low, high, 41)

    def draw(axes: Axes) -> None:
        _bars(axes, edges, (good, None), (bad, None))
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1, linscale=0.3)  # one bad row among thousands is to be seen
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        powers_of_ten(axes.xaxis)
        for limit in limits:
            axes.axvline(limit, color=INK, linewidth=1, linestyle="--")
        axes.set(xlabel="relative MSE against PyTorch FP32", ylabel="rows", xlim=(low, high))
        axes.grid(visible=False, axis="x")

    return svg("errors", draw)


def error_by_length(compared: Sequence[ComparedRow]) -> str:
    """Each sampled row's relative MSE against its length; empty if none has one."""
    parts = [(*_errors(compared, wrong=wrong), wrong) for wrong in (False, True)]
    if not any(len(lengths) for lengths, _, _ in parts):
        return ""
    low, high, limits = _scale(np.concatenate([errors for _, errors, _ in parts]), compared)

    def draw(axes: Axes) -> None:
        for lengths, errors, wrong in parts:
            marker, colour, size = ("x", BAD, 5) if wrong else ("o", GOOD, 3)
            points = axes.plot(lengths, errors, marker, color=colour, markersize=size, alpha=1 if wrong else 0.6)
            points[0].set_rasterized(len(lengths) > _POINTS)
        axes.set_yscale("log")
        powers_of_ten(axes.yaxis)
        for limit in limits:
            axes.axhline(limit, color=INK, linewidth=1, linestyle="--")
        _token_axis(axes)
        axes.set(ylabel="relative MSE", ylim=(low, high))

    return svg("by-length", draw)


def length_histogram(lengths: Mapping[int, int], max_length: int | None) -> str:
    """How many rows have how many tokens, those that are truncated in another colour; empty if none has any.

    Args:
        lengths: ``n_tokens`` → rows.
        max_length: the engine's; None where long texts have windows, and none is truncated.
    """
    tokens = np.array([length for length in lengths if length > 0], np.int64)
    if not len(tokens):
        return ""
    rows = np.array([lengths[length] for length in tokens.tolist()])
    # Whole tokens: no bar without a length that could be in it, and none with both kinds of rows.
    whole = np.round(np.geomspace(tokens.min(), tokens.max() + 1, 41))
    over = tokens > max_length if max_length else np.zeros(len(tokens), bool)
    edges = np.unique([*whole, tokens.min() + 1, *([max_length + 1] if max_length and over.any() else [])]) - 0.5

    def draw(axes: Axes) -> None:
        _bars(axes, edges, (tokens[~over], rows[~over]), (tokens[over], rows[over]))
        if max_length:
            axes.axvline(max_length + 0.5, color=INK, linewidth=1, linestyle="--")
        _token_axis(axes)
        axes.set(ylabel="rows")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(visible=False, axis="x")

    return svg("lengths", draw)


def throughput(found: Throughput | None) -> str:
    """Rows per second over the time that the job took, pauses left out; empty if no shard took any."""
    if found is None:
        return ""
    seconds = found.edges[-1]
    name, unit = next((name, unit) for name, unit, most in _UNITS if seconds <= most * unit)

    def draw(axes: Axes) -> None:
        axes.stairs(found.rates, found.edges / unit, fill=True, color=GOOD, alpha=0.35)
        axes.stairs(found.rates, found.edges / unit, color=GOOD, linewidth=1.5, baseline=None)
        for pause in found.pauses:
            axes.axvline(pause / unit, color=INK, linewidth=1, linestyle=":")
        axes.set(xlabel=name, ylabel="rows/s", xlim=(0, seconds / unit), ylim=(0, None))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))

    return svg("throughput", draw)


_UNITS = (("seconds", 1, 180), ("minutes", 60, 180), ("hours", 3600, 72), ("days", 86400, np.inf))
"""Of the time axis: name, seconds, and up to how many it is used."""


def _errors(compared: Sequence[ComparedRow], *, wrong: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lengths and relative MSEs of the rows whose vectors break their tolerance, or of those whose vectors do not."""
    found = [
        (row.row.n_tokens, max(row.comparison.relative_mse, _FLOOR))
        for row in compared
        if row.comparison and np.isfinite(row.comparison.relative_mse) and bool(row.vector_problem) == wrong
    ]
    lengths, errors = np.array(found, np.float64).reshape(-1, 2).T
    return lengths, errors


def _scale(errors: npt.NDArray[np.float64], compared: Sequence[ComparedRow]) -> tuple[float, float, list[float]]:
    """Whole powers of ten below and above all errors, and the rows' limits that are drawn between them.

    A limit that is far above all rows is left out: it would squeeze them together.
    """
    low, top = np.floor(np.log10(errors.min())), np.log10(errors.max())
    limits = [row_limit(TOLERANCES[precision]) for precision in sorted({row.precision for row in compared})]
    near = [limit for limit in limits if np.log10(limit) < top + 3]
    high = np.ceil(max([top, low + 0.5, *np.log10(near)]) + 0.01)
    return float(10**low / 1.2), float(10**high), near


_Weighted = tuple[npt.NDArray[np.number], npt.NDArray[np.number] | None]
"""Values, and what each counts; None for 1."""


def _bars(axes: Axes, edges: npt.NDArray[np.float64], good: _Weighted, bad: _Weighted) -> None:
    """A histogram, what is wrong above what is right; each one shape, where ``hist`` makes one of each bar."""
    below = np.zeros(len(edges) - 1)
    for (values, weights), colour in ((good, GOOD), (bad, BAD)):
        if len(values):
            above = below + np.histogram(values, edges, weights=weights)[0]
            axes.stairs(above, edges, baseline=below, fill=True, color=colour)
            below = above


def _token_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_xlabel("tokens, before truncation")


def powers_of_ten(axis: Axis) -> None:
    """Label a logarithmic axis at each power, as 10⁻⁷. matplotlib's own labels are formulas, which it parses."""
    axis.set_major_formatter(lambda value, _: f"10{str(round(np.log10(value))).translate(_RAISED)}")
    axis.set_minor_locator(NullLocator())


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _make_room(figure: Figure, axes: Axes) -> None:
    """Leave as much room at the left as the labels there take. matplotlib's own layouts draw each picture twice."""
    low, high = sorted(axes.get_ylim())
    places = [place for place in axes.get_yticks() if low <= place <= high]
    longest = max(map(len, axes.yaxis.get_major_formatter().format_ticks(places)), default=0)
    width, height = (inches * 72 for inches in _SIZE)
    figure.subplots_adjust(
        left=(26 + 6.5 * longest) / width, bottom=39 / height, right=1 - 14 / width, top=1 - 8 / height
    )


def svg(name: str, draw: Callable[[Axes], None]) -> str:
    """A picture for a page, its ids prefixed with ``name``, so that they differ from those of the other pictures."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE)
        axes = figure.add_subplot()
        draw(axes)
        _make_room(figure, axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)  # a style would be the whole page's
    svg = re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', r'<svg aria-hidden="true" viewBox="\1">', svg, count=1)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's own
    for drawn, shown in _COLOURS.items():
        svg = svg.replace(drawn, shown)
    return svg
