"""The page of a comparison: one file that needs no network and runs no script, as the report."""

from datetime import datetime

from markupsafe import Markup
from rich.filesize import decimal

from contract.words import count
from verify import compare_pictures as pictures
from verify.difference import Compared, Difference
from verify.page import template
from verify.terminal import cosine


def compare_page(found: Difference) -> str:
    """The whole page."""
    return template("compare.html").render(
        found=found,
        when=datetime.fromisoformat(found.when).strftime("%Y-%m-%d %H:%M UTC"),
        facts=facts(found),
        charts=[(title, Markup(drawn), text) for title, drawn, text in _charts(found) if drawn],
        sides={"first": _side(found.left), "second": _side(found.right)},
    )


def facts(found: Difference) -> dict[str, str]:
    """The figures, for people."""
    error = f" ± {100 * found.overlap_error:.1f} %" if found.overlap_error else ""
    shown = {
        "rows compared": f"{found.compared:,} of {found.rows:,}",
        f"of {found.neighbours} neighbours kept": f"{100 * found.overlap:.1f} %{error}",
        "nearest one kept": f"{100 * found.first_kept:.1f} %",
        "bytes of a vector": f"{found.left.vector_bytes:,} and {found.right.vector_bytes:,}",
        "bytes of all shards": f"{decimal(found.left.bytes)} and {decimal(found.right.bytes)}",
    }
    for name, number in {"vector in the first only": found.only_left, "in the second only": found.only_right}.items():
        if number:
            shown[name] = f"{number:,}"
    if found.cosines:
        shown |= {
            "lowest cosine": cosine(found.cosines.lowest),
            "1 % at or below": cosine(found.cosines.percent_1),
            "median cosine": cosine(found.cosines.median),
        }
    return shown


def _charts(found: Difference) -> list[tuple[str, str, str]]:
    sampled = f"{count(found.sample, 'row')}, compared with every other one. "
    whole = found.kept[-1]
    charts = [
        (
            "Neighbours kept",
            pictures.kept_bars(found),
            f"{sampled}All {found.neighbours} are kept by {whole:,} ({100 * whole / found.sample:.1f} %).",
        )
    ]
    if found.cosines:
        text = (
            f"Of {count(found.compared, 'row')}, the median dashed. The farther to the left, the more alike; a cosine "
            "above 0.99999999 counts as that."
        )
        charts.append(("Distance of a row's two vectors", pictures.distance_histogram(found), text))
    return charts


def _side(one: Compared) -> dict[str, str]:
    return {
        "job": one.job,
        "folder": one.folder,
        "model": one.model,
        "engine": f"{one.engine}, {one.fingerprint}",
        "kept as": one.form,
        "elements": f"{one.elements:,}",
        "bytes of a vector": f"{one.vector_bytes:,}",
        "bytes of all shards": decimal(one.bytes),
    }
