"""``report.html``: the verdict and its pictures as one file that needs no network and runs no script."""

import functools
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from contract.compare import TOLERANCES
from contract.job import Job
from contract.verdict import Verdict, repairs, summary
from contract.words import count
from verify import pictures
from verify.comparison import ComparedRow, row_limit
from verify.sample import Sample
from verify.terminal import cosine, small
from verify.throughput import Throughput, throughput_of
from verify.verdict import Evidence

LIBRARIES = (
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
"""Whose versions the page names."""


@functools.cache
def template(name: str) -> Template:
    """A page to fill in, a file beside this one; whatever is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"small": small, "cosine": cosine}
    return environment.get_template(name)


def page(verdict: Verdict, job: Job, evidence: Evidence | None) -> str:
    """The whole page of a verdict.

    Args:
        verdict: the verdict.
        job: the job that it is about.
        evidence: what the pictures show; None where no sample could be drawn.
    """
    return template("report.html").render(
        verdict=verdict,
        subject=_subject(job),
        when=datetime.fromisoformat(verdict.when).strftime("%Y-%m-%d %H:%M UTC"),
        summary=summary(verdict, job.folder).removeprefix("Verified: "),
        repairs=repairs(verdict, job.folder),
        facts=_facts(verdict),
        charts=_charts(evidence) if evidence else [],
        provenance=_provenance(verdict, job, evidence),
    )


def _subject(job: Job) -> str:
    """What was embedded by what."""
    dataset = Path(job.dataset).name if Path(job.dataset).is_absolute() else job.dataset
    return f"{dataset} ({job.split}, {job.parts.shown}), embedded by {job.engine}"


def _facts(verdict: Verdict) -> dict[str, str]:
    """The figures at the top."""
    facts = {"rows": f"{verdict.accounting.rows:,} of {verdict.rows:,}"}
    counts = {"tokens": verdict.tokens, "without a text": verdict.without_text, "with an error": verdict.failed}
    facts |= {name: f"{number:,}" for name, number in counts.items() if number is not None}
    if verdict.truncated is not None:
        facts["truncated"] = f"{verdict.truncated:,} ({_percent(verdict.truncated, verdict.accounting.rows)})"
    spared = {"taken from earlier jobs": sum(verdict.taken.values()), "of a text that came again": verdict.repeated}
    facts |= {name: f"{number:,}" for name, number in spared.items() if number}
    if verdict.compared:
        facts |= {
            "recomputed": f"{verdict.compared:,}",
            "lowest cosine": cosine(verdict.total.min_cosine),
            "relative MSE": small(verdict.total.relative_mse),
        }
    return facts


def _charts(evidence: Evidence) -> list[tuple[str, Markup, str]]:
    """Title, picture, and in words what it shows."""
    compared, sample, max_length = evidence.compared, evidence.sample, evidence.max_length
    throughput = throughput_of(sample.shards)
    drawn = [
        ("Error", pictures.error_histogram(compared), _about_errors(compared)),
        (
            "Error against length",
            pictures.error_by_length(compared),
            "The same rows by length. A cross is a row whose vector breaks its tolerance.",
        ),
        ("Lengths", pictures.length_histogram(sample.lengths, max_length), _about_lengths(sample, max_length)),
        ("Throughput", pictures.throughput(throughput), _about_throughput(sample, throughput)),
    ]
    return [(title, Markup(svg), text) for title, svg, text in drawn if svg]


def _about_errors(compared: Sequence[ComparedRow]) -> str:
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


def _about_lengths(sample: Sample, max_length: int | None) -> str:
    texts = sorted((length, rows) for length, rows in sample.lengths.items() if length > 0)
    if not texts:
        return ""
    lengths, rows = np.array(texts).T
    total = int(rows.sum())
    median = lengths[np.searchsorted(rows.cumsum(), total / 2)]
    half = f"Half have {count(median, 'token')} or fewer, the longest has {lengths[-1]:,}."
    about = f"{count(total, 'row')} with a text. {half} "
    if max_length is None:
        return about + "Long texts have windows: none was truncated."
    over = int(rows[lengths > max_length].sum())
    return about + f"The engine takes {max_length:,}. Truncated: {count(over, 'row')} ({_percent(over, total)})."


def _about_throughput(sample: Sample, throughput: Throughput | None) -> str:
    if throughput is None:
        return ""
    tokens, computed = (sum(getattr(one, name) for one in sample.shards) for name in ("tokens", "computed_tokens"))
    rows, seconds = sum(one.rows for one in sample.shards), throughput.edges[-1]
    pauses = len(throughput.pauses)
    return (
        f"All workers together, from when each shard was computed ({count(len(sample.shards), 'shard')}): on average "
        f"{rows / seconds:,.1f} rows/s and {tokens / seconds:,.0f} tokens/s over {timedelta(seconds=round(seconds))}. "
        f"{_percent(computed - tokens, computed)} of what was computed was padding."
        + (f" Left out, and dotted: {count(pauses, 'pause')}." if pauses else "")
    )


def _provenance(verdict: Verdict, job: Job, evidence: Evidence | None) -> dict[str, str]:
    facts = _about_job(job) | (_about_engine(evidence) if evidence else {})
    # In a checkout that was not installed embedmill has no version.
    installed = [next(iter(distributions(name=name)), None) for name in LIBRARIES]
    facts["verified by"] = ", ".join(f"{found.name} {found.version}" for found in installed if found)
    sample = f"a sample of {count(verdict.sample, 'row')}, seed {verdict.seed}"
    facts["with"] = f"Python {platform.python_version()}, {sample}"
    return {name: value for name, value in facts.items() if value}


def _about_job(job: Job) -> dict[str, str]:
    limit = f" (limit {job.limit:,})" if job.limit else ""
    return {
        "job": job.id,
        "dataset": job.dataset,
        "configuration": job.config or "",
        "split, text": f"{job.split}, {job.parts.shown}",
        "revision": job.revision,
        "rows": f"{job.rows:,}{limit}, {job.batch_rows:,} to a shard",
        "prefix": repr(job.prefix) if job.prefix else "",
        "kept as": str(job.form),
        "kept columns": ", ".join(job.columns),
        "long texts": "" if job.overlap is None else f"windows that share {count(job.overlap, 'token')}",
        "engine": job.engine,
        "engine's fingerprint": job.fingerprint,
    }


def _about_engine(evidence: Evidence) -> dict[str, str]:
    spec = evidence.spec
    made = Counter(one.computed_by for one in evidence.sample.shards)
    return {
        "model": spec.model,
        "model's revision": spec.revision or "",
        "vectors": f"{spec.architecture}, pooling {spec.pooling}, {'' if spec.normalize else 'not '}normalized, "
        f"{spec.hidden:,} wide, at most {spec.longest_row}",
        "computed by": "; ".join(f"{name} ({count(shards, 'shard')})" for name, shards in made.most_common()),
    }


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
