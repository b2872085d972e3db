"""Blank texts: the producer and the verifier, each by its own reading, take the same rows for rows without a text."""

import csv
import json
import random
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.engine import EngineSpec
from contract.graph import MODES, Pooling
from contract.job import Job
from contract.shard import read_info
from producer.dataset import dataset_of
from tests.conftest import build_engine
from tests.verify.jobs import finished_job, rewrite, save_texts, with_value
from tests.verify.test_command import failed, failing_rows, verdict, verify
from verify.readings import read_twice

pytestmark = pytest.mark.usefixtures("undrawn")

_WHITE = re.findall(r"\s", "".join(map(chr, range(sys.maxunicode + 1))))
_NEARLY = ["\u200b", "\u2060", "\ufeff", "\u180e", "\0", " \u200b ", "\t.", "a" + "\u3000" * 9, "\x1b", "\u2800"]
"""What looks blank in a terminal, and is not."""


def strange_texts(rows: int) -> list[str | None]:
    """Every white space by itself, and seeded mixtures of blank, nearly blank and missing texts."""
    chance = random.Random(7)
    found: list[str | None] = ["", None, *_WHITE, *_NEARLY]
    while len(found) < rows:
        blank = "".join(chance.choices(_WHITE, k=chance.randrange(40)))
        found.append(chance.choice([blank, blank, blank + chance.choice(_NEARLY) + blank, "A word. " * 30, None]))
    return found


def table(job: Job) -> pa.Table:
    return pa.concat_tables(pq.read_table(job.shard(batch)) for batch in range(job.batches))


def assert_blank_rows_have_no_vector(job: Job, texts: list[str | None]) -> None:
    """In the shards, their footers, the second reading and the verdict."""
    blank = [row for row, text in enumerate(texts) if text is None or re.fullmatch(r"\s*", text)]
    rows = table(job)
    assert [row for row, vector in enumerate(rows["embedding"].to_pylist()) if vector is None] == blank
    assert [row for row, count in enumerate(rows["n_tokens"].to_pylist()) if count == 0] == blank
    assert sum(read_info(job.shard(batch)).without_text for batch in range(job.batches)) == len(blank)
    readings = read_twice(job, dataset_of(job), range(job.rows))
    assert not readings.differing.count
    assert [row for row, text in readings.texts.items() if text is None] == blank
    told = verify(job.folder, "--sample", "all")
    assert told.exit_code == 0, told.output
    assert (verdict(job)["without_text"], verdict(job)["compared"]) == (len(blank), job.rows - len(blank))


@pytest.mark.parametrize("pooling", [*MODES, "tokens"])
@pytest.mark.parametrize("prefix", ["", "of: "])
def test_producer_and_verifier_agree_on_every_blank_text(
    pooling: Pooling, prefix: str, tiny_model: Path, workplace: Path
) -> None:
    texts = strange_texts(120)
    spec = build_engine(tiny_model, f"blank-{pooling}", pooling)
    job = finished_job(spec, save_texts(workplace / "texts", texts), prefix=prefix, columns=("text",))
    assert table(job)["text"].to_pylist() == texts
    assert_blank_rows_have_no_vector(job, texts)


def test_blank_texts_beside_long_ones_in_windows(tiny_model: Path, workplace: Path) -> None:
    texts = strange_texts(90)
    spec = build_engine(tiny_model, "blank-windows", "mean", max_length=16)
    job = finished_job(spec, save_texts(workplace / "texts", texts), overlap=4, columns=("text",))
    assert table(job)["text"].to_pylist() == texts
    assert_blank_rows_have_no_vector(job, texts)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_each_reader_of_files_agrees(suffix: str, tiny: EngineSpec, workplace: Path) -> None:
    texts = [text for text in strange_texts(90) if "\0" not in (text or "")]  # which no csv has
    file = workplace / f"rows.{suffix}"
    if suffix == "csv":
        with file.open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened, quoting=csv.QUOTE_ALL).writerows([["n", "text"], *enumerate(texts)])
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    else:
        pq.write_table(pa.table({"text": texts}), file)
    assert_blank_rows_have_no_vector(finished_job(tiny, file, text="{text}"), texts)


def test_a_text_of_several_columns_is_blank_once_the_template_is_filled_in(tiny: EngineSpec, workplace: Path) -> None:
    cells = [("", None), (" ", "\u2003"), (None, None), ("a title", ""), (None, "a body"), ("", "\u200b")]
    file = workplace / "rows.jsonl"
    file.write_text("".join(json.dumps({"title": title, "body": body}) + "\n" for title, body in cells))
    filled = [None if title is body is None else f"{title or ''}\n{body or ''}" for title, body in cells]
    assert_blank_rows_have_no_vector(finished_job(tiny, file, text="{title}\\n{body}", batch_rows=4), filled)
    file.write_text("".join(json.dumps({"title": title}) + "\n" for title, _ in cells))
    named = [None if title is None else f"Title: {title}" for title, _ in cells]
    assert_blank_rows_have_no_vector(finished_job(tiny, file, text="Title: {title}", batch_rows=4), named)


@pytest.fixture
def job(tiny: EngineSpec, workplace: Path) -> Job:
    return finished_job(tiny, save_texts(workplace / "texts", ["One.", " \n", "\u200b", None, "Five."]))


def test_a_vector_of_a_blank_text_is_caught(job: Job, tiny: EngineSpec) -> None:
    def change(rows: pa.Table) -> pa.Table:
        return with_value("n_tokens", 1, 2)(with_value("embedding", 1, [1.0] * tiny.hidden)(rows))

    info = read_info(job.shard(0))
    rewrite(job, 0, change, tokens=info.tokens + 2, without_text=1)
    assert verify().exit_code == 1
    assert failed(job) == {"lengths", "fp32 vectors"}
    assert failing_rows(job) == [1]


def test_a_text_that_only_looks_blank_must_have_its_vector(job: Job) -> None:
    def change(rows: pa.Table) -> pa.Table:
        return with_value("n_tokens", 2, 0)(with_value("embedding", 2, None)(rows))

    info = read_info(job.shard(0))
    rewrite(job, 0, change, tokens=info.tokens - 2, without_text=3)
    assert verify().exit_code == 1
    assert failed(job) == {"without a text"}
    assert "the dataset has a text: 1 (2)" in str(verdict(job)["checks"])
