"""The benchmark as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

from contract.errors import UserError
from contract.words import count
from engine_build.bench.records import SYSTEMS, BenchRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = dict(zip(SYSTEMS, ("#2f7d32", "#9aa0a6", "#7aa5d8", "#2f5d9b"), strict=True))
_FORMATS = (".svg", ".png", ".pdf")


def draw(records: Sequence[BenchRecord], path: Path) -> None:
    """Draw sequences a second, a panel for each batch, and beside each bar how many times PyTorch FP32's that is.

    Args:
        records: of one model and GPU; of others, the first's only.
        path: .svg, .png or .pdf.

    Raises:
        UserError: another kind of file.
    """
    if path.suffix not in _FORMATS:
        raise UserError(f"--chart {path}", f"expected a file that ends in {', '.join(_FORMATS)}")
    matplotlib.use("agg")
    from matplotlib import pyplot  # after use(): it takes its backend when it is imported

    same = [one for one in records if (one.model, one.gpu) == (records[0].model, records[0].gpu)]
    shapes = sorted({one.shape for one in same}, key=lambda shape: (shape.length, shape.rows))
    figure, panels = pyplot.subplots(len(shapes), 1, figsize=(8, 1.2 + 1.5 * len(shapes)), squeeze=False)
    for shape, panel in zip(shapes, panels[:, 0], strict=True):
        panel.set_title(f"{shape.rows} × {count(shape.length, 'token')}", loc="left", fontsize=9)
        _draw_bars(panel, [one for one in same if one.shape == shape][::-1])
    panels[-1, 0].set_xlabel("sequences/s")
    figure.suptitle(f"{same[0].model} on {same[0].gpu}", x=0.02, ha="left", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_bars(panel: "Axes", records: Sequence[BenchRecord]) -> None:
    """A bar for each system."""
    base = next((one.sequences_per_s for one in records if one.system == "torch-fp32"), None)
    ratios = [f"  ({one.sequences_per_s / base:.1f} ×)" if base else "" for one in records]
    bars = panel.barh(
        [one.system for one in records],
        [one.sequences_per_s for one in records],
        color=[_COLOURS[one.system] for one in records],
    )
    labels = [f"{one.sequences_per_s:,.0f}{ratio}" for one, ratio in zip(records, ratios, strict=True)]
    panel.bar_label(bars, labels, padding=4, fontsize=8)
    panel.margins(x=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
