import csv
import gzip
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import UserError
from contract.template import of_column
from producer.dataset import open_dataset
from producer.texts import DatasetSource, TextDataset
from tests.conftest import JARGON

TEXTS = ["the miller", "two\u2028lines", "", None, "NA", "None", "null", "nan", 'a "quoted", one', "tab\there"]
LINES = json.dumps({"text": "one", "n": 1}) + "\n" + json.dumps({"text": "two", "n": 2}) + "\n"

ODD = {
    "NUL": "before\0after",
    "emoji": "👩‍👩‍👧 🇩🇪 e\u0301",
    "right to left": "עברית والعربية \u202eabc",
    "a megabyte": "grain " * 175_000,
    "null": None,
    "empty": "",
    "blank": " \n\t ",
    "control": "\x01\x1b[31m\x7f",
    "byte order mark": "\ufeffx",
    "newlines": "a\r\nb\nc",
}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def all_texts(dataset: TextDataset) -> list[str | None]:
    return dataset.texts(range(dataset.rows))


def read(path: Path) -> list[str | None]:
    return all_texts(open_dataset(DatasetSource(str(path))))


def _jsonl(path: Path, texts: Sequence[str | None]) -> Path:
    return write(path.with_suffix(".jsonl"), "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))


def _jsonl_unescaped(path: Path, texts: Sequence[str | None]) -> Path:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    return write(path.with_suffix(".ndjson"), "".join(lines))


def _json(path: Path, texts: Sequence[str | None]) -> Path:
    return write(path.with_suffix(".json"), json.dumps([{"text": text} for text in texts]))


def _parquet(path: Path, texts: Sequence[str | None]) -> Path:
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def _pandas_parquet(path: Path, texts: Sequence[str | None]) -> Path:
    pd.DataFrame({"text": texts}).to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def _polars_parquet(path: Path, texts: Sequence[str | None]) -> Path:
    pl.DataFrame({"text": texts}).write_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def _saved(path: Path, texts: Sequence[str | None]) -> Path:
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(path)
    return path


def _zipped(path: Path, texts: Sequence[str | None]) -> Path:
    return write(path.with_suffix(".jsonl.gz"), gzip.compress(_jsonl(path, texts).read_bytes()))


Writer = Callable[[Path, Sequence[str | None]], Path]
every_format = pytest.mark.parametrize(
    "save", [_jsonl, _jsonl_unescaped, _json, _parquet, _pandas_parquet, _polars_parquet, _saved, _zipped]
)


@every_format
def test_texts_come_as_they_were_written(save: Writer, tmp_path: Path) -> None:
    path = save(tmp_path / "data", TEXTS)
    dataset = open_dataset(DatasetSource(str(path)))
    assert (dataset.dataset, dataset.split, dataset.text, dataset.rows) == (str(path), "train", "{text}", len(TEXTS))
    assert all_texts(dataset) == TEXTS
    assert dataset.texts(range(2, 5)) == ["", None, "NA"]
    assert dataset.texts(range(0)) == []


@every_format
@pytest.mark.parametrize("name", ODD)
def test_an_odd_text_is_a_row_like_any_other(name: str, save: Writer, tmp_path: Path) -> None:
    assert read(save(tmp_path / "data", ["before", ODD[name], "after"])) == ["before", ODD[name], "after"]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_cell_is_a_text_also_where_it_says_na_and_an_empty_one_is_null(
    suffix: str, delimiter: str, tmp_path: Path
) -> None:
    path = tmp_path / f"data.{suffix}"
    texts = [*TEXTS, *(text for name, text in ODD.items() if name != "newlines")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["n", "text"], *([place, text] for place, text in enumerate(texts))])
    assert read(path) == [text or None for text in texts]


def test_a_csv_as_pandas_writes_it_keeps_its_rows(tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS}).to_csv(tmp_path / "data.csv", index=False)
    assert read(tmp_path / "data.csv") == [text or None for text in TEXTS]


def test_a_line_of_a_text_file_is_a_row_also_where_it_is_empty(tmp_path: Path) -> None:
    assert read(write(tmp_path / "data.txt", "one\n\n  two \r\nNA\n")) == ["one", "", "  two ", "NA"]


def test_the_bundled_dataset_has_its_rows() -> None:
    dataset = open_dataset(DatasetSource(str(JARGON)))
    assert (dataset.rows, dataset.text) == (2307, "{text}")
    lines = JARGON.read_text(encoding="utf-8").split("\n")
    assert dataset.texts(range(2000, 2003)) == [json.loads(line)["text"] for line in lines[2000:2003]]


@pytest.mark.parametrize(
    "name", ["a b.jsonl", "[draft] data*.jsonl", "what?.jsonl", "{a,b}.jsonl", "a#b%20.jsonl", "日本.jsonl", ".h.jsonl"]
)
def test_a_file_of_any_name_is_read(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "another"}\n')
    assert read(write(tmp_path / name, LINES)) == ["one", "two"]


@pytest.mark.parametrize("folder", ["a b", "[2024] *", "test", ".hidden"])
def test_a_file_in_a_folder_of_any_name_is_read(folder: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / folder / "data.jsonl", LINES)) == ["one", "two"]


def test_a_folder_whose_name_is_a_pattern_is_refused_with_the_mend(tmp_path: Path) -> None:
    folder = write(tmp_path / "data [2024]" / "a.jsonl", LINES).parent
    with pytest.raises(UserError, match="rename the folder"):
        open_dataset(DatasetSource(str(folder)))


def test_a_path_may_be_relative_or_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data.jsonl", LINES)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data.jsonl", "./data.jsonl", "~/data.jsonl"):
        assert open_dataset(DatasetSource(name)).dataset == str(tmp_path / "data.jsonl")


def test_a_folders_files_follow_each_other_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / "data" / f"{name}.jsonl", json.dumps({"text": name}))
    assert read(tmp_path / "data") == ["a", "b", "c"]


def test_a_folders_splits_are_told_by_its_files_names(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / "data" / f"{name}.csv", f"text\nof {name}\n")
    assert read(tmp_path / "data") == ["of train"]
    assert all_texts(open_dataset(DatasetSource(str(tmp_path / "data"), split="test"))) == ["of test"]
    with pytest.raises(UserError, match=r"no split 'dev' in .*there: train, test; .*--split"):
        open_dataset(DatasetSource(str(tmp_path / "data"), split="dev"))


def test_the_only_split_is_taken_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path / "data" / "test.jsonl", LINES)
    assert open_dataset(DatasetSource(str(tmp_path / "data"))).split == "test"
    write(tmp_path / "data" / "validation.jsonl", LINES)
    with pytest.raises(UserError, match=r"several choices of split .*there: validation, test"):
        open_dataset(DatasetSource(str(tmp_path / "data")))


def test_files_that_are_left_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "data" / "a.jsonl", LINES)
    write(tmp_path / "data" / "b.jsonl", LINES)
    write(tmp_path / "data" / "README.md", "of data")
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "data") == ["one", "two"] * 2
        assert caplog.messages == []
        write(tmp_path / "data" / "c.csv", "text\nthree\n")
        assert read(tmp_path / "data") == ["one", "two"] * 2
    (message,) = caplog.messages
    assert message.endswith("left out: c.csv")


def test_saved_splits_are_found(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "n": [1, 2, 3]})
    datasets.DatasetDict({"train": rows, "test": rows.select([2, 0])}).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == ["a", "b", "c"]
    assert all_texts(open_dataset(DatasetSource(str(tmp_path / "saved"), split="test"))) == ["c", "a"]
    with pytest.raises(UserError, match="no split 'dev'"):
        open_dataset(DatasetSource(str(tmp_path / "saved"), split="dev"))


def test_a_saved_selection_has_the_rows_in_their_new_order(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b", None, "d"]}, split=datasets.Split.VALIDATION)
    rows.select([3, 2, 0]).save_to_disk(tmp_path / "saved")
    dataset = open_dataset(DatasetSource(str(tmp_path / "saved")))
    assert (dataset.split, all_texts(dataset)) == ("validation", ["d", None, "a"])


HALVES = ["a\\ud800b", "\\ud83d\\ude00", "\\\\ud800", "\\uDC00\\uD800", "\\\\\\udfff", "plain"]
HEALED = ["a\ufffdb", "😀", "\\ud800", "\ufffd\ufffd", "\\\ufffd", "plain"]


def test_half_of_a_surrogate_pair_costs_neither_the_row_nor_the_file(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "{text}"}}\n' for text in HALVES)
    path = write(tmp_path / "data.jsonl", lines)
    assert read(path) == HEALED
    assert read(path) == HEALED  # again, from the cache
    assert path.read_text() == lines
    assert read(write(tmp_path / "data.jsonl.gz", gzip.compress(lines.encode()))) == HEALED


def test_half_of_a_surrogate_pair_is_found_far_behind_the_start(tmp_path: Path) -> None:
    many = f'{{"text": "{"x" * 600_000}"}}\n' * 30
    found = open_dataset(DatasetSource(str(write(tmp_path / "data.jsonl", many + '{"text": "a\\ud800b"}\n'))))
    assert (found.rows, found.texts(range(30, 31))) == (31, ["a\ufffdb"])


def test_half_of_a_surrogate_pair_in_one_file_of_a_folder_costs_no_other(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl", LINES)
    write(tmp_path / "data" / "b.jsonl", '{"text": "a\\ud800b", "n": 3}\n')
    assert read(tmp_path / "data") == ["one", "two", "a\ufffdb"]


def test_half_of_a_surrogate_pair_in_a_json_array_costs_no_row(tmp_path: Path) -> None:
    first, second = read(write(tmp_path / "data.json", '[{"text": "a\\ud800b"}, {"text": "ok"}]'))
    assert first in ("ab", "a\ufffdb")  # the reader of arrays leaves the half out
    assert second == "ok"


def test_a_parquet_text_that_is_no_utf8_is_refused_with_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"a\xffb", b"\xed\xa0\x80", None], pa.binary())
    for kind in (pa.string(), pa.large_string()):
        column = raw.cast(pa.large_binary()) if kind == pa.large_string() else raw
        texts = pa.Array.from_buffers(kind, len(raw), column.buffers())
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{kind}.parquet")
        with pytest.raises(UserError, match=r"row 1 has .*xff.*no UTF-8, in column text"):
            read(tmp_path / f"{kind}.parquet")


def test_the_column_is_text_or_the_only_one_of_strings(tmp_path: Path) -> None:
    two = write(tmp_path / "two.csv", "title,text,n\na,b,1\n")
    assert open_dataset(DatasetSource(str(two))).text == "{text}"
    assert all_texts(open_dataset(DatasetSource(str(two), text=of_column("title")))) == ["a"]
    assert open_dataset(DatasetSource(str(write(tmp_path / "one.csv", "n,body\n1,b\n")))).text == "{body}"


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("n,title,text\n1,a,b\n", "body", "no text-column 'body' in .*there: n, title, text; .*--text-column"),
        ("n,title,body\n1,a,b\n", None, "several choices of text-column in .*there: n, title, body; .*--text-column"),
        ("n,m\n1,2\n", None, "no text column .its columns: n, m"),
    ],
    ids=["missing", "several", "none"],
)
def test_a_column_that_cannot_be_taken_is_refused_with_those_there_are(
    content: str, column: str | None, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.csv", content)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(DatasetSource(str(path), text=column and of_column(column)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", "has no rows"),
        ("empty.json", "[]", "has no rows"),
        ("empty.csv", "", "has no rows"),
        ("header.csv", "text,n\n", "has no rows"),
        ("empty.txt", "", "has no rows"),
        ("garbled.jsonl", '{"text": "a"}\n{oops\n', "line 2: no JSON"),
        ("garbled.json", '[{"text": "a"}, {oops]', "row 1: no JSON"),
        ("cut.json", '[{"text": "a"}, {"te', "row 1: no JSON"),
        ("more.json", '[{"text": "a"}] 1', "there is more after the array"),
        ("garbled.parquet", "PAR1", "is empty or cannot be read"),
        ("garbled.jsonl.gz", "not zipped", "compressed as .gz says"),
        ("garbled.csv.zst", "not zipped", "compressed as .zst says"),
        ("garbled.txt.xz", "not zipped", "compressed as .xz says"),
        ("garbled.csv.bz2", "not zipped", "compressed as .bz2 says"),
        ("ragged.csv", 'text,n\na,1\n"b,2\nc,3,4\n', "line 3: a quote is not closed"),
        ("latin.txt", "a\nM\u00fchle".encode("latin-1"), "line 2: .*iconv"),
        ("latin.csv", "text\nM\u00fchle".encode("latin-1"), "line 2: .*iconv"),
        ("latin.jsonl", '{"text": "M\u00fchle"}'.encode("latin-1"), "line 1: .*iconv"),
        ("latin.json", '[\n{"text": "M\u00fchle"}]'.encode("latin-1"), "line 2: .*iconv"),
        ("utf16.csv", "text\na".encode("utf-16"), "UTF-16"),
        ("image.png", b"\x89PNG", "no file in it has a suffix that is known"),
        ("no_suffix", "text\na\n", "no file in it has a suffix that is known"),
        ("folder/README.md", "no data here", "no file in it has a suffix that is known"),
    ],
)
def test_a_file_without_rows_or_sense_is_refused(
    name: str, content: str | bytes, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / name, content)
    path = path.parent if path.parent != tmp_path else path
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(DatasetSource(str(path)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_saved_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    rows.select([]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"empty|no rows"):
        open_dataset(DatasetSource(str(tmp_path / "saved")))
    datasets.DatasetDict({"train": rows, "test": rows.filter(lambda row: False)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(UserError, match=r"empty|no rows"):
        open_dataset(DatasetSource(str(tmp_path / "splits"), split="test"))


@pytest.mark.parametrize("file", ["state.json", "data-00000-of-00001.arrow"])
def test_a_garbled_saved_folder_is_refused(file: str, tmp_path: Path) -> None:
    _saved(tmp_path / "saved", ["a"])
    (tmp_path / "saved" / file).write_text("{")
    with pytest.raises(UserError, match="save_to_disk"):
        open_dataset(DatasetSource(str(tmp_path / "saved")))


@pytest.mark.parametrize("name", ["none.jsonl", "./none", "../none.csv", "/nowhere/none", "~/none"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(UserError, match=f"no dataset {name}; expected"):
        open_dataset(DatasetSource(name))


def test_a_hub_dataset_without_a_network_is_refused_with_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("imdb", "acme/no-such-dataset"):
        with pytest.raises(UserError, match=f"no dataset {name}, or no network .*without network: ") as caught:
            open_dataset(DatasetSource(name))
        assert "\n" not in str(caught.value)


def test_the_revision_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    file = write(tmp_path / "here" / "data.jsonl", LINES)
    first = open_dataset(DatasetSource(str(file))).revision
    moved = Path(shutil.copy(file, tmp_path))
    assert open_dataset(DatasetSource(str(moved))).revision == first
    write(moved, LINES.replace("two", "owt"))
    assert open_dataset(DatasetSource(str(moved))).revision != first

    _saved(tmp_path / "saved", ["a"])
    first = open_dataset(DatasetSource(str(tmp_path / "saved"))).revision
    (tmp_path / "saved").rename(tmp_path / "renamed")
    (tmp_path / "renamed" / ".lock").touch()
    assert open_dataset(DatasetSource(str(tmp_path / "renamed"))).revision == first
    (tmp_path / "renamed" / "more").touch()
    assert open_dataset(DatasetSource(str(tmp_path / "renamed"))).revision != first


@pytest.mark.parametrize("zipped", [False, True])
def test_changed_content_is_read_again_also_where_the_files_time_is_the_old_one(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / ("data.jsonl.gz" if zipped else "data.jsonl")
    for text in ("old", "new"):
        content = json.dumps({"text": text}).encode()
        write(path, gzip.compress(content) if zipped else content)
        os.utime(path, (1_000_000, 1_000_000))
        assert read(path) == [text]
