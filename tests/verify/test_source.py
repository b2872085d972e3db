"""The second readers against tables that the test wrote itself."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from contract.errors import UserError
from contract.job import CsvDialect
from producer.files import KINDS
from producer.local import READERS as FIRST_READERS
from tests.contract.samples import a_job
from verify.source import READERS, Source, SourceRow, parts_of, read_source
from verify.values import same, value_at

TEXTS = ["one", None, 'a "quoted", one', "line\nend", "日本語 🙂", "  blank  ", "007", "NA", "x" * 70_000, "last"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def test_each_kind_of_file_has_two_readers() -> None:
    assert {*FIRST_READERS, "csv"} == {*READERS, "csv"} == set(KINDS.values())


def source(dataset: Path, wanted: range, **fields: Any) -> Source:
    return read_source(a_job(dataset.parent / "output", **{"dataset": str(dataset), "text": "{text}"} | fields), wanted)


def texts(dataset: Path, rows: int = len(TEXTS), **fields: Any) -> list[str | None]:
    found = source(dataset, range(rows), **fields)
    assert found.rows == rows
    return [found.wanted[row].text for row in range(rows)]


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](content))
    return path


def csv_bytes(rows: list[list[Any]], **dialect: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(compression: str, separator: str, tmp_path: Path) -> None:
    rows: list[list[Any]] = [["n", "text"], *([number, text] for number, text in enumerate(TEXTS))]
    path = written(tmp_path / f"a.csv{compression}", csv_bytes(rows, delimiter=separator))
    dialect = CsvDialect(separator=separator, header=True)
    assert texts(path, csv=dialect) == TEXTS
    found = source(path, range(3, 5), csv=dialect, columns=("n",))
    assert found.rows == len(TEXTS)
    assert found.wanted == {3: SourceRow(TEXTS[3], ["3"]), 4: SourceRow(TEXTS[4], ["4"])}


def test_a_csv_of_one_column_has_a_row_for_each_line_and_one_of_several_has_not(tmp_path: Path) -> None:
    dialect = CsvDialect(separator=",", header=True)
    one = written(tmp_path / "one.csv", b"text\na\n\n  \nb\n\n")
    assert texts(one, 5, csv=dialect) == ["a", None, "  ", "b", None]
    two = written(tmp_path / "two.csv", b"n,text\n1,a\n\n2,b\n\n")
    assert texts(two, 2, csv=dialect) == ["a", "b"]
    bare = written(tmp_path / "bare.csv", b"1;a\n2;b\n")
    assert texts(bare, 2, csv=CsvDialect(separator=";", header=False), text="{column_2}") == ["a", "b"]


def test_blank_lines_before_the_first_row_and_files_without_rows(tmp_path: Path) -> None:
    dialect, bare = CsvDialect(separator=",", header=True), CsvDialect(separator=",", header=False)
    assert texts(written(tmp_path / "a.csv", b"\n\nn,text\n1,a\n"), 1, csv=dialect) == ["a"]
    assert texts(written(tmp_path / "b.csv", b"\n\na\n\nb\n"), 5, csv=bare, text="{column_1}") == [
        None,
        None,
        "a",
        None,
        "b",
    ]
    written(tmp_path / "many" / "0.csv", b"")
    written(tmp_path / "many" / "1.csv", b"\n")
    written(tmp_path / "many" / "2.csv", b"a\nb\n")
    assert texts(tmp_path / "many", 2, csv=bare, text="{column_1}") == ["a", "b"]


@pytest.mark.parametrize("content", [b"n,text\n1,a,b\n", b"n,text\n1,a\n2\n", b'n,text\n1,"a\n', b"n,text\n1,\xff\n"])
def test_a_csv_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv") as caught:
        source(written(tmp_path / "a.csv", content), range(2), csv=CsvDialect(separator=",", header=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", COMPRESS)
def test_json_lines(compression: str, tmp_path: Path) -> None:
    lines = "".join(
        json.dumps({"text": text, "n": [1, None]}, ensure_ascii=n % 2 == 0) + "\n" for n, text in enumerate(TEXTS)
    )
    path = written(tmp_path / f"a.jsonl{compression}", lines.replace("\n", "\n \r\n", 1).encode())
    assert texts(path) == TEXTS
    assert source(path, range(2), columns=("n",)).wanted[1].kept == [[1, None]]


def test_json_arrays_half_pairs_and_rows_that_are_no_objects(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "a.json", json.dumps([{"text": text} for text in TEXTS]).encode())) == TEXTS
    halves = written(
        tmp_path / "b.jsonl", b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\udc00\\ud800"}\n'
    )
    assert texts(halves, 3) == ["a\ufffdb", "😀", "\ufffd\ufffd"]
    for content in (b"[1]", b'"a"\n', b"{oops\n"):
        with pytest.raises(UserError, match=r"c\.json"):
            source(written(tmp_path / "c.json", content), range(1))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.zst", "a.txt.gz", "a.txt.xz", "a.csv.bz2", "a.json"])
def test_garbage_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"[" * 100_000 if name == "a.json" else b"\x80PAR1 and no more")
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        source(tmp_path / name, range(1), csv=CsvDialect(separator=",", header=True))
    assert "\n" not in str(caught.value)


def test_text_files(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "a.txt", b"one\n\n  two \r\nNA"), 4) == ["one", "", "  two ", "NA"]
    mixed = b"\xef\xbb\xbfa\rb\r\r\n\nc\xe2\x80\xa8d\r"
    assert texts(written(tmp_path / "b.txt", mixed), 5) == ["a", "b", "", "", "c\u2028d"]


KEPT: dict[str, pa.Array] = {
    "int": pa.array([1, None, -3]),
    "unsigned": pa.array([1, 2**64 - 1, None], pa.uint64()),
    "float": pa.array([0.5, float("nan"), None], pa.float32()),
    "bool": pa.array([True, None, False]),
    "decimal": pa.array([Decimal("1.50"), None, Decimal(-2)], pa.decimal128(9, 2)),
    "date": pa.array([date(2026, 1, 2), None, date(1, 1, 1)]),
    "time": pa.array([datetime(2026, 1, 2, 3, tzinfo=UTC), None, None], pa.timestamp("us", "UTC")),
    "naive": pa.array([datetime(2026, 1, 2, 3), None, None], pa.timestamp("ns")),
    "duration": pa.array([timedelta(seconds=3), None, None]),
    "bytes": pa.array([b"\xff\0", None, b""]),
    "list": pa.array([["a", None], None, []]),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "struct": pa.array([{"a": 1, "b": {"c": "x"}}, None, {"a": None, "b": None}]),
    "dictionary": pa.array(["a", None, "b"]).dictionary_encode(),
    "view": pa.array(["a", None, "a long enough text"], pa.string_view()),
    "half": pa.array([0.5, None, 2.0], pa.float16()),
    'odd "name"': pa.array([1, 2, 3]),
}


def test_parquet_of_every_type_in_several_groups_and_files(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None, "c"], **KEPT})
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    found = source(folder, range(1, 8), columns=tuple(KEPT))
    assert found.rows == 9
    assert sorted(found.wanted) == list(range(1, 8))
    for row, taken in found.wanted.items():
        assert taken.text == ["a", None, "c"][row % 3]
        for name, value in zip(KEPT, taken.kept, strict=True):
            assert same(value, value_at(KEPT[name], row % 3)), (name, value)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_texts_of_every_type(kind: pa.DataType, tmp_path: Path) -> None:
    column = pa.array(TEXTS).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(TEXTS, kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == TEXTS
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_file(file, pa.schema([("text", kind)])) as to:
        to.write_table(pa.table({"text": column}), 3)
    assert texts(tmp_path / "b.arrow") == TEXTS


def test_saved_folders_and_their_splits(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    rows.save_to_disk(tmp_path / "saved", num_shards=3)
    assert texts(tmp_path / "saved") == TEXTS
    datasets.DatasetDict({"train": rows.select([0]), "test": rows.shuffle(3)}).save_to_disk(tmp_path / "splits")
    assert texts(tmp_path / "splits", split="test") == rows.shuffle(3)["text"]
    assert texts(tmp_path / "splits", 1) == ["one"]


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{a}", [("", "a"), ("", None)]),
        (r"{a}: {b.c}\n", [("", "a"), (": ", "b.c"), ("\n", None)]),
        (r"{{{a}}}\t\\{b\}\{\\}", [("{", "a"), ("}\t\\", "b}{\\"), ("", None)]),
        ("x{a}{a}", [("x", "a"), ("", "a"), ("", None)]),
    ],
)
def test_templates_are_cut_as_the_producer_cuts_them(template: str, parts: list[tuple[str, str | None]]) -> None:
    assert parts_of(template) == parts
    job = a_job(Path("/output"), text=template)
    assert job.parts.columns == tuple(name for _, name in parts if name is not None)
    assert job.parts.literals == tuple(literal for literal, _ in parts)


def test_paths_and_templates(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"title": "T", "doc": {"text": "inner"}, "doc.text": None, "a.b": "literal"},
        {"title": None, "doc": {"text": "only"}, "a.b": "x"},
        {"title": None, "doc": None},
    ]
    lines = written(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    pq.write_table(
        pa.Table.from_pylist([{k: v for k, v in row.items() if k != "doc.text"} for row in rows]),
        tmp_path / "a.parquet",
    )
    for path in (lines, tmp_path / "a.parquet"):
        assert texts(path, 3, text="{a.b}") == ["literal", "x", None]
    assert texts(tmp_path / "a.parquet", 3, text=r"{title}\n{doc.text}") == ["T\ninner", "\nonly", None]


@pytest.mark.parametrize("compression", COMPRESS)
def test_only_the_first_byte_order_mark_is_none_of_the_text(compression: str, tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert texts(written(tmp_path / f"a.txt{compression}", mark + mark + b"a\n" + mark + b"b\n"), 2) == [
        "\ufeffa",
        "\ufeffb",
    ]
    rows = mark + b"text\n" + mark + b"a\nb\n"
    dialect = CsvDialect(separator=",", header=True)
    assert texts(written(tmp_path / f"b.csv{compression}", rows), 2, csv=dialect) == ["\ufeffa", "b"]
    assert texts(written(tmp_path / f"c.jsonl{compression}", mark + b'{"text": "\\ufeffa"}\n'), 1) == ["\ufeffa"]


def test_a_limit_is_not_the_second_readers_business(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"a\nb\nc\n")
    assert source(path, range(1), limit=1, rows=1).rows == 3


def test_random_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    chance = random.Random(11)
    for number in range(200):
        cells: list[str | None] = [
            "".join(chance.choices('ab",;\t\n\r \u2028é🙂0\0', k=chance.randrange(8))) or None
            for _ in range(chance.randrange(1, 9))
        ]
        path = tmp_path / f"{number}"
        wanted = range(len(cells))
        separator = chance.choice(",;\t|")
        rows: list[list[Any]] = [["n", "text"], *([at, cell] for at, cell in enumerate(cells))]
        written(
            path / "a.csv",
            csv_bytes(rows, delimiter=separator, quoting=chance.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])),
        )
        assert texts(path / "a.csv", len(cells), csv=CsvDialect(separator=separator, header=True)) == cells
        written(path / "a.jsonl", "".join(json.dumps({"text": cell}) + "\n" for cell in cells).encode())
        pq.write_table(pa.table({"text": pa.array(cells, pa.string())}), path / "a.parquet", row_group_size=3)
        for name in ("a.jsonl", "a.parquet"):
            found = source(path / name, wanted[::2])
            assert found.rows == len(cells)
            assert {row: taken.text for row, taken in found.wanted.items()} == {row: cells[row] for row in wanted[::2]}
