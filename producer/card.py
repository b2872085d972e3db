"""The card of a pushed job: a README.md for people, with a front matter that the Hub and ``datasets`` read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from contract.engine import EngineSpec
from contract.job import Job
from contract.verdict import Figures, Verdict
from contract.words import count
from producer.progress import ShardTotals

_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""Rows between which the Hub sorts datasets: a thousand, and ten times as many each."""


@dataclass(frozen=True)
class Ready:
    """A job that may be pushed."""

    job: Job
    totals: ShardTotals
    """The sums over all shards."""
    verdict: Verdict | None
    """The verifier's, if it was asked."""
    doubt: str
    """Why the job cannot count as verified; empty if it can."""


def card_of(ready: Ready, spec: EngineSpec, repo: str, kept: Mapping[str, Any]) -> str:
    """A card.

    Args:
        ready: the job and what is known of it.
        spec: its engine.
        repo: where it goes.
        kept: front matter that is there already, such as a licence.
    """
    job, totals = ready.job, ready.totals
    source, model = _linked(job.dataset, "datasets/"), _linked(spec.model, "")
    config = f", configuration `{job.config}`" if job.config else ""
    at = f", revision `{job.revision[:12]}`"
    limit = f", the first {job.limit:,}" if job.limit else ""
    parts = [
        f"---\n{DatasetCardData(**{**kept, **_front_matter(job, spec)}).to_yaml()}\n---",
        f"# {repo.rpartition('/')[2]}",  # the name that its owner has chosen; a file's or a folder's may be any
        f"A vector for each row of {_of_columns(job)} of {source}{config}, split `{job.split}`{at}: "
        f"{count(job.rows, 'row')}{limit}, in the dataset's order. Made by embedmill.",
        f'```python\nimport datasets\n\ndatasets.load_dataset("{repo}", split="{job.split}")\n```',
        "## Model",
        _table(("", ""), _model_rows(job, spec, totals, model)),
        "## Rows",
        _table(
            ("", ""),
            [
                ("rows", f"{totals.rows:,}"),
                ("truncated", f"{totals.truncated:,}{_truncated(job, spec)}"),
                ("without a text (null, empty or only white space)", f"{totals.without_text:,}"),
                ("with an error in place of a vector", f"{totals.failed:,}"),
            ],
        ),
        _table(("column", ""), _columns(job, spec)),
        "## Verification",
        *_verification(ready.verdict, ready.doubt),
    ]
    return "\n\n".join(parts) + "\n"


def pushed_job(front_matter: Mapping[str, Any]) -> str | None:
    """The id of the job that a card describes; None for a card of another kind."""
    found = front_matter.get("embedmill")
    return str(found.get("job")) if isinstance(found, dict) else None


def _of_columns(job: Job) -> str:
    if job.parts.plain is not None:
        return f"the column `{job.parts.plain}`"
    return f"the template `{job.parts.shown}`"


def _front_matter(job: Job, spec: EngineSpec) -> dict[str, Any]:
    local = Path(job.dataset).is_absolute()
    return {
        "configs": [{"config_name": "default", "data_files": [{"split": job.split, "path": f"data/{job.split}-*"}]}],
        **({} if local else {"source_datasets": [job.dataset]}),
        "size_categories": [_size(job.rows)],
        "tags": ["embeddings", "embedmill"],
        "embedmill": {
            "job": job.id,
            "model": _named(spec.model),
            "pooling": spec.pooling,
            "normalize": spec.normalize,
            "max_length": spec.max_length,
            "fingerprint": job.fingerprint,
            "dtype": job.form.dtype,
            "dimensions": job.form.elements(spec.hidden),
            # Without them int8 vectors could not be turned into numbers again.
            **({"ranges": [list(edge) for edge in job.form.ranges]} if job.form.ranges else {}),
        },
    }


def _size(rows: int) -> str:
    step = sum(rows >= 1000 * 10**power for power in range(len(_SIZES)))
    if step in (0, len(_SIZES)):
        return f"n<{_SIZES[0]}" if step == 0 else f"n>{_SIZES[-1]}"
    return f"{_SIZES[step - 1]}<n<{_SIZES[step]}"


_POOLING: Mapping[str, str] = {"tokens": "none: a vector for each token", "sparse": "none: a sparse vector"}


def _model_rows(job: Job, spec: EngineSpec, totals: ShardTotals, model: str) -> list[tuple[str, str]]:
    return [
        ("model", model + (f", revision `{spec.revision[:12]}`" if spec.revision else "")),
        ("pooling", _POOLING.get(spec.layout, spec.pooling)),
        ("normalization", "norm 1" if spec.normalize else "none"),
        ("width", f"{spec.hidden:,}"),
        ("kept as", f"{job.form}" + (", ranges in this card's front matter" if job.form.ranges else "")),
        ("longest row", f"{spec.longest_row}; what is longer {_longer(job)}"),
        ("text before each row", f"`{job.prefix!r}`" if job.prefix else "none"),
        ("computed by", ", ".join(sorted(totals.runtimes))),
        ("engine", f"`{job.fingerprint}`"),
    ]


def _truncated(job: Job, spec: EngineSpec) -> str:
    return f", which have more than {count(spec.max_length, 'token')}" if not job.windowed else ""


def _longer(job: Job) -> str:
    if job.overlap is None:
        return "is truncated"
    return f"is cut into windows that share {count(job.overlap, 'token')}, and has the mean of their vectors"


def _columns(job: Job, spec: EngineSpec) -> list[tuple[str, str]]:
    vectors = _vectors(job, spec)
    return [
        ("`row_id`", "the row's index in the source dataset"),
        *((f"`{name}`", f"{what}; null for a row without a text or with an error") for name, what in vectors),
        ("`n_tokens`", "before truncation, special tokens counted; 0 without a text"),
        ("`truncated`", "more tokens than the model was given"),
        ("`error`", "why a row that has a text has no vector"),
        ("`text_hash`", "the first 16 bytes of the text's SHA-256"),
        *((f"`{name}`", "as in the source dataset") for name in job.columns),
    ]


def _vectors(job: Job, spec: EngineSpec) -> list[tuple[str, str]]:
    """The columns of the vectors, and what they hold."""
    element = str(job.form.element)
    if spec.layout == "sparse":
        indices = f"which of the vector's {count(spec.hidden, 'element')} are not zero, ascending"
        return [("indices", indices), ("weights", f"{element}, the values of these elements")]
    return [("embedding", element + (", a list of vectors" if spec.per_token else ""))]


def _verification(verdict: Verdict | None, doubt: str) -> Iterable[str]:
    if doubt:
        yield f"**Not verified**: {_cell(doubt)}."
    if verdict is None:
        return
    if not doubt:
        yield (
            f"Verified on {verdict.when[:10]}: every row accounted for, {verdict.compared:,} of all lengths taken from "
            "the dataset again, computed by PyTorch in FP32 and compared."
        )
    header = ("tokens", "rows", "MSE", "relative MSE", "lowest cosine", "largest difference", "non-finite")
    yield _table(header, [_figures(row) for row in [*verdict.strata, verdict.total]])
    checks = [(check.name, "pass" if check.passed else "**fail**", check.detail) for check in verdict.checks]
    yield _table(("check", "result", ""), checks)


def _figures(row: Figures) -> tuple[str, ...]:
    floats = (row.mse, row.relative_mse, row.min_cosine, row.max_difference)
    formats = (".1e", ".1e", ".7f", ".1e")
    shown = ("–" if value is None else f"{value:{how}}" for value, how in zip(floats, formats, strict=True))
    return row.tokens, f"{row.rows:,}", *shown, f"{row.non_finite:,}"


def _named(name: str) -> str:
    """A Hub id as it is; of a local path only the last part, since the rest is nobody's business."""
    return Path(name).name if Path(name).is_absolute() else name


def _linked(name: str, kind: str) -> str:
    if Path(name).is_absolute():
        return f"`{_named(name)}`"
    return f"[{name}](https://huggingface.co/{kind}{name})"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
