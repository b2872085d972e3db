"""Random tables, written by other libraries in random dialects, are read exactly as they were written, or refused.

EMBEDMILL_FUZZ=100000 draws that many tables in place of 2,000.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import UserError
from producer.dataset import open_dataset
from producer.texts import DatasetSource, TextDataset
from tests.contract.samples import a_job
from verify.source import read_source

TABLES, SEEDS = int(os.environ.get("EMBEDMILL_FUZZ", "2000")), 8

NASTY = [
    *(
        "007",
        "1.50",
        "-3",
        "1e5",
        "True",
        "false",
        "NA",
        "null",
        "None",
        "nan",
        "NaN",
        "",
        " ",
        "  \t",
        "0",
        "12345678901234567890",
    ),
    *('a "quoted" word', '"', '""', "a, b", "a; b", "a | b", "a\tb", "line\nend", "line\r\nend", "cr\rend", "\n", "\r"),
    *(
        "a\0b",
        "\u2028",
        "a\u2029b",
        "\x85",
        "\x1c\x1d\x1e",
        "\ufeffx",
        "x\ufeff",
        "Mühle",
        "日本語",
        "👩‍👩‍👧",
        "e\u0301",
        "עברית",
    ),
    *(
        "\\",
        "\\n",
        "a\\",
        '\\"',
        "'",
        "{x}",
        "#",
        "# no comment",
        "=1+1",
        "x" * 5000,
        "2020-01-01",
        "12:30",
        "  padded  ",
    ),
    *("plain", "some words of a text", "the miller grinds", "good", "bad, really", '5" disk', "[1, 2]", '{"a": 1}'),
]
NAMES = ["id", "title", "body", "label", "a b", "x.y", "Über", "n"]

Table = dict[str, list[str | None]]
Writer = Callable[[random.Random, Table, Path], tuple[Path, bool]]
"""Writes a table; says whether nulls and empty strings are told apart."""


def a_table(draw: random.Random) -> Table:
    columns = ["text", *draw.sample(NAMES, draw.choice([0, 0, 1, 1, 2, 3]))]
    draw.shuffle(columns)
    rows = draw.choice([1, 1, 2, 3, 5, 8, 20])
    pools: list[list[str | None]] = [[*NASTY, None], ["1", "2", "007", "", None], ["good", "bad, really", "a\nb"]]
    pool = {name: draw.choice(pools) for name in columns}
    return {name: [draw.choice(pool[name]) for _ in range(rows)] for name in columns}


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    *[("", bytes)] * 4,
    (".gz", gzip.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
    (".zst", lambda raw: pa.Codec("zstd").compress(raw, asbytes=True)),
]


def compressed(draw: random.Random, path: Path, data: bytes) -> Path:
    suffix, pack = draw.choice(PACKERS)
    target = path.with_name(path.name + (suffix if draw.random() < 0.8 else suffix.upper()))
    target.write_bytes(pack(data))
    return target


def by_csv(draw: random.Random, table: Table, path: Path) -> tuple[Path, bool]:
    # A backslash of the text and one that escapes cannot be told apart where no quote follows.
    escaped = draw.random() < 0.1 and not any("\\" in (cell or "") for cells in table.values() for cell in cells)
    out = io.StringIO(newline="")
    writer = csv.writer(
        out,
        delimiter=draw.choice(",,,;;\t\t||"),
        quoting=draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        lineterminator=draw.choice(["\n", "\n", "\r\n", "\r"]),
        doublequote=not escaped,
        escapechar="\\" if escaped else None,
    )
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    text = out.getvalue()
    if draw.random() < 0.1:
        text = text.rstrip("\r\n") if next(reversed(table.values()))[-1] not in ("", None, "\n", "\r") else text
    bom = b"\xef\xbb\xbf" if draw.random() < 0.2 else b""
    return compressed(draw, path.with_suffix(draw.choice([".csv", ".csv", ".CSV", ".tsv"])), bom + text.encode()), False


def by_pandas_csv(draw: random.Random, table: Table, path: Path) -> tuple[Path, bool]:
    text = pd.DataFrame(table, dtype=object).to_csv(index=draw.random() < 0.2, sep=draw.choice(",;\t|"))
    return compressed(draw, path.with_suffix(".csv"), text.encode()), False


def by_polars_csv(draw: random.Random, table: Table, path: Path) -> tuple[Path, bool]:
    frame = pl.DataFrame(table, schema=dict.fromkeys(table, pl.String))
    return compressed(draw, path.with_suffix(".csv"), frame.write_csv(separator=draw.choice(",;\t|")).encode()), False


def by_json(draw: random.Random, table: Table, path: Path) -> tuple[Path, bool]:
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    odd: list[object] = [1, 2.5, float("nan"), [1], {"k": None}, "a", None, 10**30, True]
    if draw.random() < 0.4:
        rows = [row | {"odd": draw.choice(odd)} for row in rows]
    plain = draw.random() < 0.5
    if draw.random() < 0.4:
        text = json.dumps(rows, ensure_ascii=plain, indent=draw.choice([None, None, 2]))
        return compressed(draw, path.with_suffix(".json"), text.encode()), True
    text = "".join(json.dumps(row, ensure_ascii=plain) + draw.choice(["\n", "\r\n", "\n\n"]) for row in rows)
    return compressed(draw, path.with_suffix(draw.choice([".jsonl", ".ndjson", ".json"])), text.encode()), True


def by_pandas_json(draw: random.Random, table: Table, path: Path) -> tuple[Path, bool]:
    lines = draw.random() < 0.5
    text = pd.DataFrame(table, dtype=object).to_json(orient="records", lines=lines, force_ascii=draw.random() < 0.5)
    return compressed(draw, path.with_suffix(".jsonl" if lines else ".json"), text.encode()), True


def by_polars_json(draw: random.Random, table: Table, path: Path) -> tuple[Path, bool]:
    frame = pl.DataFrame(table, schema=dict.fromkeys(table, pl.String))
    return compressed(draw, path.with_suffix(".jsonl"), frame.write_ndjson().encode()), True


def by_parquet(draw: random.Random, table: Table, path: Path) -> tuple[Path, bool]:
    target = path.with_suffix(draw.choice([".parquet", ".PARQUET"]))
    match draw.randrange(3):
        case 0:
            kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
            columns = {name: pa.array(values, pa.string()).cast(draw.choice(kinds)) for name, values in table.items()}
            pq.write_table(pa.table(columns), target, row_group_size=draw.choice([1, 3, 100]))
        case 1:
            pd.DataFrame(table, dtype=object).to_parquet(target)
        case _:
            pl.DataFrame(table, schema=dict.fromkeys(table, pl.String)).write_parquet(target)
    return target, True


WRITERS: list[Writer] = [
    *[by_csv] * 5,
    *(by_pandas_csv, by_polars_csv),
    *[by_json] * 2,
    *(by_pandas_json, by_polars_json, by_parquet, by_parquet),
]


def outcome(draw: random.Random, table: Table, path: Path) -> str:
    """Write a table and read it: ``equal`` or ``refused``, or what is wrong."""
    try:
        file, nulls = draw.choice(WRITERS)(draw, table, path)
    except csv.Error:  # the dialect cannot hold it
        return "refused"
    expected = {name: values if nulls else [value or None for value in values] for name, values in table.items()}
    other = draw.choice([name for name in table if name != "text"] or [""])
    template = "{text}" if draw.random() < 0.7 or not other else f"{{text}}\\n{{{other}}}"
    columns = (other,) if other and draw.random() < 0.3 else ()
    try:
        opened = open_dataset(DatasetSource(str(file), text=template, columns=columns))
    except UserError as error:
        return "wrong: two lines" if "\n" in str(error) else "refused"
    texts, kept = opened.read(range(opened.rows))
    due = expected["text"]
    if template != "{text}":
        pairs = zip(due, expected[other], strict=True)
        due = [None if a is None and b is None else f"{a or ''}\n{b or ''}" for a, b in pairs]
    if texts != due:
        return f"wrong: {file.name} {file.read_bytes()[:300]!r}: {texts!r:.600} in place of {due!r:.600}"
    if columns and kept[other].to_pylist() != expected[other]:
        return f"wrong: {file.name}: kept {kept[other].to_pylist()!r} in place of {expected[other]!r}"
    return second(opened, texts, path.parent) or "equal"


def second(opened: TextDataset, texts: list[str | None], folder: Path) -> str | None:
    """What is wrong by the verifier's reader, if anything."""
    fields = ("dataset", "config", "split", "text", "revision", "columns", "csv", "rows")
    job = a_job(folder, **{name: getattr(opened, name) for name in fields})
    found = read_source(job, range(opened.rows))
    theirs = [found.wanted[row].text for row in range(found.rows) if row in found.wanted]
    if (found.rows, theirs) != (len(texts), texts):
        return f"wrong: {found.reader} {theirs!r:.600}, the producer {texts!r:.600} ({opened.dataset})"
    return None


@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_table_is_read_as_it_was_written_or_refused(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    draw, found = random.Random(seed), Counter[str]()
    for number in range(TABLES // SEEDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        found[outcome(draw, a_table(draw), folder / "data")] += 1
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    print(f"seed {seed}: {dict(found) if len(found) < 3 else found}")
    wrong = [what for what in found if what.startswith("wrong")]
    assert not wrong, f"{len(wrong)} wrong, the first: {wrong[0]}"
    assert found["equal"] > TABLES // SEEDS / 2
