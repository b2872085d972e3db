"""``report.html``: the verdict and its pictures as one file that needs no network and runs no script."""

import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from contract.compare import TOLERANCES
from contract.words import count
from verify import pictures
from verify.compared import Compared, row_limit, total
from verify.report import Report, verdict
from verify.sample import Sample
from verify.throughput import rows_per_second

_WORST = 20
"""Rows that are listed, those that fail first."""
_LIBRARIES = (
    "embedmill",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "datasets",
    "pyarrow",
    "duckdb",
    "numpy",
)


def template() -> Template:
    """The page to fill in; whatever is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"tiny": _tiny, "cosine": _cosine}
    return environment.get_template("report.html")


def page(report: Report) -> str:
    """The whole page of a verdict."""
    line, *steps = verdict(report).splitlines()
    return template().render(
        report=report,
        job=report.job,
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=line.removeprefix("Verified: "),
        steps=steps,
        facts=_facts(report),
        charts=_charts(report),
        strata=[(name, rows, total(rows)) for name, rows in report.strata.items()],
        worst=sorted(report.compared, key=_badness)[:_WORST],
        provenance=_provenance(report),
    )


def _facts(report: Report) -> dict[str, str]:
    """The figures at the top."""
    facts = {"rows": f"{report.accounting.rows:,} of {report.job.rows:,}"}
    if report.sample:
        seen, shards = report.sample.seen, report.sample.shards
        facts |= {
            "tokens": f"{sum(one.tokens for one in shards):,}",
            "truncated": f"{seen.truncated:,} ({_percent(seen.truncated, seen.rows)})",
            "without a text": f"{seen.without_text:,}",
            "with an error": f"{seen.failed.count:,}",
        }
    if report.compared:
        whole = total(report.compared)
        facts |= {
            "recomputed": f"{len(report.compared):,}",
            "lowest cosine": _cosine(whole.min_cosine),
            "relative MSE": _tiny(whole.relative_mse),
        }
    return facts


def _charts(report: Report) -> list[tuple[str, Markup, str]]:
    """Title, picture, and in words what it shows."""
    compared, sample = report.compared, report.sample
    if not sample:
        return []
    limit = report.engine.max_length if report.engine and report.job.overlap is None else None
    drawn = [
        ("Error", pictures.error_histogram(compared), _about_errors(compared)),
        (
            "Error against length",
            pictures.error_by_length(compared),
            "The same rows by length. A cross is a row whose vector breaks its tolerance.",
        ),
        ("Lengths", pictures.length_histogram(sample.lengths, limit), _about_lengths(sample, limit)),
        ("Throughput", pictures.throughput(sample.shards), _about_throughput(sample)),
    ]
    return [(title, Markup(svg), text) for title, svg, text in drawn if svg]


def _about_errors(compared: Sequence[Compared]) -> str:
    errors = [row.comparison.relative_mse for row in compared if row.comparison]
    finite = [error for error in errors if np.isfinite(error)]
    if not finite:
        return ""
    limits = (f"{row_limit(TOLERANCES[name]):.0e} ({name})" for name in sorted({row.precision for row in compared}))
    missing = len(compared) - len(finite)
    return (
        f"{count(len(finite), 'sampled row')}. Half are at {np.median(finite):.1e} or below, the highest is at "
        f"{max(finite):.1e}. A row's limit, dashed where it is near enough, is {', '.join(limits)}."
        + (f" Not drawn, having no error that is a number: {count(missing, 'row')}." if missing else "")
    )


def _about_lengths(sample: Sample, limit: int | None) -> str:
    texts = sorted((length, rows) for length, rows in sample.lengths.items() if length > 0)
    if not texts:
        return ""
    lengths, rows = np.array(texts).T
    every = int(rows.sum())
    median = lengths[np.searchsorted(rows.cumsum(), every / 2)]
    half = f"Half have {count(median, 'token')} or fewer, the longest has {lengths[-1]:,}."
    about = f"{count(every, 'row')} with a text. {half} "
    if limit is None:
        return about + "Long texts have windows: none was truncated."
    over = int(rows[lengths > limit].sum())
    return about + f"The engine takes {limit:,}. Truncated: {count(over, 'row')} ({_percent(over, every)})."


def _about_throughput(sample: Sample) -> str:
    seconds, rates, pauses = rows_per_second(sample.shards)
    if not len(rates):
        return ""
    tokens, computed = (sum(getattr(one, name) for one in sample.shards) for name in ("tokens", "computed_tokens"))
    rows, took = sum(one.rows for one in sample.shards), seconds[-1]
    return (
        f"All workers together, from when each shard was computed ({count(len(sample.shards), 'shard')}): on average "
        f"{rows / took:,.1f} rows/s and {tokens / took:,.0f} tokens/s over {timedelta(seconds=round(took))}. "
        f"{_percent(computed - tokens, computed)} of what was computed was padding."
        + (f" Left out, and dotted: {count(len(pauses), 'pause')}." if len(pauses) else "")
    )


def _provenance(report: Report) -> dict[str, str]:
    job, spec = report.job, report.engine
    facts = {
        "job": job.id,
        "dataset": job.dataset,
        "configuration": job.config or "",
        "split, text": f"{job.split}, {job.parts.shown}",
        "revision": job.revision,
        "rows": f"{job.rows:,}" + (f" (limit {job.limit:,})" if job.limit else "") + f", {job.batch_rows:,} to a shard",
        "prefix": repr(job.prefix) if job.prefix else "",
        "kept as": str(job.form),
        "kept columns": ", ".join(job.columns),
        "long texts": "" if job.overlap is None else f"windows that share {count(job.overlap, 'token')}",
        "engine": job.engine,
        "engine's fingerprint": job.fingerprint,
    }
    if spec:
        facts |= {
            "model": spec.model,
            "model's revision": spec.revision or "",
            "vectors": f"{spec.architecture}, pooling {spec.pooling}, {'' if spec.normalize else 'not '}normalized, "
            f"{spec.hidden:,} wide, at most {spec.truncation}",
        }
    if report.sample:
        made = Counter(f"{one.runtime}, {one.precision}" for one in report.sample.shards)
        facts["computed by"] = "; ".join(f"{name} ({count(shards, 'shard')})" for name, shards in made.most_common())
    # In a checkout that was not installed embedmill has no version.
    installed = [next(iter(distributions(name=name)), None) for name in _LIBRARIES]
    facts["verified by"] = ", ".join(f"{found.name} {found.version}" for found in installed if found)
    facts["with"] = f"Python {platform.python_version()}, a sample of {count(report.asked, 'row')}, seed {report.seed}"
    return {name: value for name, value in facts.items() if value}


def _badness(row: Compared) -> tuple[bool, float]:
    """Sorts failing rows first, then the highest error first; one that is no number is above all."""
    error = row.comparison.relative_mse if row.comparison else np.inf
    return not row.problem, -error if np.isfinite(error) else -np.inf


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def _tiny(number: float) -> str:
    return f"{number:.1e}" if np.isfinite(number) else "–"


def _cosine(number: float) -> str:
    return f"{number:.7f}" if np.isfinite(number) else "–"
