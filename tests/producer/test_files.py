"""Local files that were once misread: each is read as it is, or refused with what to do about it."""

import bz2
import gzip
import http.server
import json
import logging
import lzma
import os
import pickle
import threading
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.buckets import BUCKET, client, credentials, s3_server
from contract.errors import UserError
from contract.job import CsvDialect
from contract.template import of_column
from producer.dataset import dataset_of, open_dataset
from producer.texts import CsvOptions, DatasetSource
from tests.contract.samples import a_job
from tests.producer.test_dataset import all_texts, read, write


def refused(path: Path, match: str, text: str | None = None) -> None:
    with pytest.raises(UserError, match=match) as caught:
        open_dataset(DatasetSource(str(path), text=text))
    assert "\n" not in str(caught.value)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings; what is only told depends on the level that a command may have set in this process."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('review,sentiment\n"A long review",pos,\n"Another",neg,\n', r"line 2: found 3 fields, .*','.*expected 2"),
        ('id,text\n1,"a\nb"\n2,fine\n3,not, fine\n', "line 5: found 3 fields"),
        ("id,text\n1,a\n2\n", "line 3: found 1 field"),
        ("text\nhello, world\n", "line 2: found 2 fields.*expected 1 field"),
        ('id,text\n1,"never closed\n2,b\n', "line 2: a quote is not closed"),
        ('id,text\n1,"says "no""\n2,b\n', "line 2: a quote is not closed, or followed by more"),
        ("text\r\na\nb\r\n", "rows end with"),
        ('id,text\n1,say \\"hi\\"\n', "a backslash escapes a quote"),
    ],
)
def test_a_ragged_row_is_refused_with_its_line(content: str, match: str, tmp_path: Path) -> None:
    refused(write(tmp_path / "data.csv", content), match, "{text}" if "text" in content else "{review}")


def test_the_cells_of_a_csv_are_texts_wherever_they_stand(tmp_path: Path) -> None:
    values = ["007", "1.50", "True", "NA", "null", "99999999999999999999", None, "word"]
    lines = [f"{row},{values[row // 12_000] or ''}\n" for row in range(12_000 * len(values))]
    opened = open_dataset(
        DatasetSource(str(write(tmp_path / "data.csv", "id,text\n" + "".join(lines))), columns=("id",))
    )
    assert all_texts(opened) == [values[row // 12_000] for row in range(opened.rows)]
    assert opened.read(range(12_000, 12_002))[1]["id"].to_pylist() == ["12000", "12001"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_and_said(separator: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "data.csv", f'id{separator}text\n1{separator}"a, b; c"\n2{separator}d\n')
    with caplog.at_level(logging.INFO, "embedmill.producer"):
        opened = open_dataset(DatasetSource(str(path)))
    assert all_texts(opened) == ["a, b; c", "d"]
    assert opened.csv == CsvDialect(separator=separator, header=True)
    assert caplog.messages == [f"data.csv: separator {separator!r}, columns id, text"]


def test_several_separators_that_fit_are_refused_and_one_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "id,text;n\n1,a;2\n")
    refused(path, "separators ',' and ';'.*--separator")
    assert all_texts(
        open_dataset(DatasetSource(str(path), text=of_column("text;n"), csv=CsvOptions(separator=",")))
    ) == ["a;2"]
    refused(write(tmp_path / "glued.csv", "text\n1;a\n2;b\n"), "the header has one field, and the rows have 2.*';'")


def test_a_csv_without_a_header_keeps_its_first_text(tmp_path: Path) -> None:
    for number, content in enumerate(
        ["1,good\n2,bad\n", "A review, no header.,x\n", "a,a\nb,b\n", "I liked it a lot then\nb\n"]
    ):
        refused(write(tmp_path / f"{number}.csv", content), "--no-header, or name the column")
    opened = open_dataset(DatasetSource(str(tmp_path / "0.csv"), csv=CsvOptions(header=False)))
    assert (opened.text, all_texts(opened)) == ("{column_2}", ["good", "bad"])
    assert all_texts(open_dataset(DatasetSource(str(tmp_path / "3.csv"), csv=CsvOptions(header=False)))) == [
        "I liked it a lot then",
        "b",
    ]


def test_what_is_left_out_is_named_and_suffixes_are_read_in_any_casing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.csv", "B.CSV", "c.csv.GZ"):
        content = f"text\n{name}\n".encode()
        write(tmp_path / "data" / name, gzip.compress(content) if name.endswith("GZ") else content)
    write(tmp_path / "data" / "d.xlsx", "?")
    assert sorted(filter(None, read(tmp_path / "data"))) == ["B.CSV", "a.csv", "c.csv.GZ"]
    (message,) = warned(caplog)
    assert message.endswith("left out: d.xlsx")
    assert read(tmp_path / "data" / "B.CSV") == ["B.CSV"]


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "a.csv", "text\na\n")
    write(tmp_path / "data" / "locked" / "b.csv", "text\nb\n")
    scan = os.scandir

    def denied(path: str) -> object:  # root may read all
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused(tmp_path / "data", "cannot be read.*Permission denied.*locked")


def test_in_a_csv_of_one_column_blank_lines_are_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "data.csv", 'text\na\n\n  \n""\nb\n')) == ["a", None, "  ", None, "b"]
    assert read(write(tmp_path / "two.csv", "id,text\n1,a\n\n2,b\n")) == ["a", "b"]


def test_strings_of_any_layout_are_text(tmp_path: Path) -> None:
    for number, kind in enumerate([pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"n": [1, 2], "body": pa.array(["a", None]).cast(kind)}), path)
        assert read(path) == ["a", None]


def test_a_column_of_another_type_is_told_with_its_type(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", '{"text": "a"}\n{"text": null}\n{"text": "b"}\n{"text": NaN}\n')
    refused(path, "row 3 has a number, NaN, in column text; expected a string or null")
    refused(write(tmp_path / "list.jsonl", '{"text": ["a"]}\n'), "row 0 has a list", "{text}")
    pq.write_table(pa.table({"text": [b"a"], "body": ["a"]}), tmp_path / "data.parquet")
    refused(tmp_path / "data.parquet", "column 'text' of .* holds binary; .*there: body")


def test_columns_that_nobody_needs_do_not_matter(tmp_path: Path) -> None:
    maps = pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64()))
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"m": maps, "text": ["a", "b"]}), tmp_path / "data" / "0.parquet")
    pq.write_table(pa.table({"text": ["c"], "more": [1]}), tmp_path / "data" / "1.parquet")
    assert read(tmp_path / "data") == ["a", "b", "c"]
    ids = "".join(f"{row},a\n" for row in range(11_000))
    assert len(read(write(tmp_path / "ids.csv", f"id,text\n{ids}x1,b\n"))) == 11_001
    rows = [{"text": None, "n": 1}] * 11_000 + [{"text": "late", "n": "x"}, {"text": "later", "n": float("nan")}]
    assert read(write(tmp_path / "late.jsonl", "\n".join(map(json.dumps, rows))))[-2:] == ["late", "later"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_compressed_files_are_read(kind: str, tmp_path: Path) -> None:
    content = {"csv": b"text\na\n", "jsonl": b'{"text": "a"}\n', "txt": b"a\n"}[kind]
    packed = {
        "gz": gzip.compress(content),
        "bz2": bz2.compress(content),
        "xz": lzma.compress(content),
        "zst": pa.Codec("zstd").compress(content, asbytes=True),
    }
    for suffix, raw in packed.items():
        assert read(write(tmp_path / f"data.{kind}.{suffix}", raw)) == ["a"]


def test_an_empty_split_or_file_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "data" / "train.csv", "text\na\n")
    write(tmp_path / "data" / "test.csv", "")
    assert read(tmp_path / "data") == ["a"]
    with pytest.raises(UserError, match="no rows in split 'test'"):
        open_dataset(DatasetSource(str(tmp_path / "data"), split="test"))
    write(tmp_path / "more" / "a.csv", "")
    write(tmp_path / "more" / "b.csv", "text\nb\n")
    assert read(tmp_path / "more") == ["b"]
    assert warned(caplog) == [f"{tmp_path / 'more' / 'a.csv'} has no rows"]


def test_of_several_configurations_one_is_to_be_chosen(tmp_path: Path) -> None:
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in ("en", "de"))
    write(tmp_path / "data" / "README.md", f"---\nconfigs:\n{configs}---\n")
    for name in ("en", "de"):
        write(tmp_path / "data" / f"{name}.csv", f"text\n{name}\n")
    refused(tmp_path / "data", "several configurations in .*there: en, de; choose one with --config")
    assert all_texts(open_dataset(DatasetSource(str(tmp_path / "data"), config="de"))) == ["de"]


def test_a_pattern_names_files(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.jsonl"):
        write(tmp_path / name, f"text\n{name}\n")
    opened = open_dataset(DatasetSource(str(tmp_path / "*.csv")))
    assert (all_texts(opened), opened.dataset) == (["a.csv", "b.csv"], str(tmp_path / "*.csv"))
    assert all_texts(pickle.loads(pickle.dumps(opened))) == ["a.csv", "b.csv"]


def test_an_address_is_fetched(tmp_path: Path) -> None:
    write(tmp_path / "web" / "data.csv", "text\nfrom afar\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "web"))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/data.csv"
        opened = open_dataset(DatasetSource(address))
        assert (opened.dataset, all_texts(opened)) == (address, ["from afar"])
        with pytest.raises(UserError, match=r"none\.csv cannot be fetched .*404"):
            open_dataset(DatasetSource(address.replace("data", "none")))
        server.shutdown()


def test_a_field_of_a_nested_column_is_a_text_and_a_literal_name_wins(tmp_path: Path) -> None:
    rows = [{"doc": {"text": "a", "n": 1}}, {"doc": None}, {}]
    path = write(tmp_path / "data.jsonl", "\n".join(map(json.dumps, rows)))
    assert all_texts(open_dataset(DatasetSource(str(path), text=of_column("doc.text")))) == ["a", None, None]
    table = pa.table({"doc": [{"text": "a"}, None], "x.y": ["b", "c"], "x": [{"y": "d"}, None]})
    pq.write_table(table, tmp_path / "data.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for place in ("data.parquet", "saved"):
        assert all_texts(open_dataset(DatasetSource(str(tmp_path / place), text=of_column("doc.text")))) == ["a", None]
        assert all_texts(open_dataset(DatasetSource(str(tmp_path / place), text=of_column("x.y")))) == ["b", "c"]


def test_a_template_makes_one_text_of_several_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "title,body\nA,b\n,c\n,\n")
    assert all_texts(open_dataset(DatasetSource(str(path), text=r"{title}\n{body}"))) == ["A\nb", "\nc", None]
    refused(path, "no text-column 'titel'", text="{titel}")


def test_an_object_and_what_lies_below_a_prefix_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as url:
        for name, value in credentials(url).items():
            monkeypatch.setenv(name, value)
        for name in ("a.csv", "deep/b.csv"):
            client(url).put_object(Bucket=BUCKET, Key=f"data/{name}", Body=f"text\n{name}\n".encode())
        opened = open_dataset(DatasetSource(f"s3://{BUCKET}/data"))
        assert (opened.dataset, all_texts(opened)) == (f"s3://{BUCKET}/data", ["a.csv", "deep/b.csv"])
        assert all_texts(open_dataset(DatasetSource(f"s3://{BUCKET}/data/a.csv"))) == ["a.csv"]
        client(url).delete_object(Bucket=BUCKET, Key="data/a.csv")
        assert all_texts(open_dataset(DatasetSource(f"s3://{BUCKET}/data"))) == ["deep/b.csv"]
        with pytest.raises(UserError, match=r"cannot be fetched .*no object"):
            open_dataset(DatasetSource(f"s3://{BUCKET}/none"))


def test_a_job_opens_its_dataset_as_it_was_begun_with(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "1,a;b;c\n2,d;e;f\n")
    opened = open_dataset(
        DatasetSource(
            str(path),
            text=r"{column_2}\n{column_1}",
            columns=("column_3",),
            csv=CsvOptions(separator=";", header=False),
        )
    )
    fields = ("dataset", "config", "split", "text", "revision", "columns", "csv", "rows")
    job = a_job(tmp_path, **{name: getattr(opened, name) for name in fields})
    again = dataset_of(job)
    assert again.read(range(2)) == opened.read(range(2))
    assert all_texts(again) == ["b\n1,a", "e\n2,d"]
    assert job.id != a_job(tmp_path, **{name: getattr(opened, name) for name in fields} | {"csv": None}).id


def test_halves_of_surrogate_pairs_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "data.jsonl", '{"text": "a\\ud800b", "n": NaN}\n{"text": "\\udfff\\ud800"}\n')
    assert read(path) == ["a\ufffdb", "\ufffd\ufffd"]
    assert warned(caplog) == [f"{path}: 3 halves of surrogate pairs became U+FFFD"]
