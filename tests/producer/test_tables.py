"""What a run's summary says."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from producer.progress import Progress, ShardTotals
from producer.tables import summary
from tests.contract.samples import a_job, engine_spec


def rows_of(progress: Progress, seconds: float) -> dict[str, str]:
    out = io.StringIO()
    Console(file=out, width=120).print(summary(progress, engine_spec(), seconds))
    cells = [line.strip("│").split("│") for line in out.getvalue().splitlines() if line.startswith("│")]
    return {name.strip(): value.strip() for name, value in cells}


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (ShardTotals(), ""),
        (ShardTotals(rows=1, tokens=6), "; 1 text was embedded first"),
        (ShardTotals(rows=20, tokens=120), "; 20 texts were embedded first"),
        (ShardTotals(rows=20, tokens=120, spared=19, spared_tokens=114), "; 1 text was embedded first"),
        (ShardTotals(rows=20, tokens=120, spared=20, spared_tokens=120), ""),
    ],
)
def test_texts_that_were_embedded_first_count_as_work_of_the_run(first: ShardTotals, said: str, tmp_path: Path) -> None:
    new = ShardTotals(shards=3, rows=100, tokens=600, spared=90, spared_tokens=540)
    found = rows_of(Progress(a_job(tmp_path), ShardTotals(), new, 0.0, first=first), 2.0)
    assert found["vectors taken"] == f"90: an earlier job or another row has the same text{said}"
    assert found["tokens/s"] == str((60 + first.tokens - first.spared_tokens) // 2)
