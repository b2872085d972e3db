"""A csv file is read by pyarrow itself while its quotes are checked, a compressed one through the checker."""

import gzip
import random
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from contract.errors import UserError
from contract.job import CsvDialect
from producer.csvfiles import CsvReader

SCHEMA = pa.schema([("text", pa.string())])


def outcome(file: Path) -> list[str | None] | None:
    """A file's texts; None where it is refused."""
    reader = CsvReader(CsvDialect(separator=",", header=True))
    try:
        return [text for batch in reader.batches(file, SCHEMA) for text in batch["text"].to_pylist()]
    except UserError:
        return None


@pytest.mark.parametrize("seed", range(4))
def test_a_file_and_its_compressed_form_are_read_alike_or_both_refused(seed: int, tmp_path: Path) -> None:
    draw, kinds = random.Random(seed), set()
    plain, compressed = tmp_path / "rows.csv", tmp_path / "rows.csv.gz"
    for _ in range(150):
        end = draw.choice(["\n", "\r\n"])
        fields = [draw.choice(["a", '"b"', '"c,d"', '"e""f"', f'"g{end}h"', "", 'i"j', "é"]) for _ in range(30)]
        rows = ["text,other", *(",".join(fields[place : place + 2]) for place in range(0, 30, 2))]
        data = bytearray((end.join(rows) + draw.choice([end, ""])).encode())
        for _ in range(draw.choice([0, 0, 1, 2])):  # damages
            data[draw.randrange(11, len(data))] = draw.choice(b'",\n\rx\\\xff')
        plain.write_bytes(data)
        compressed.write_bytes(gzip.compress(data, 1))
        found = outcome(plain)
        assert found == outcome(compressed), bytes(data)
        kinds.add(type(found))
    assert len(kinds) == 2


def test_a_quote_that_breaks_late_is_found_though_pyarrow_takes_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,other\n" + "a,b\n" * 1_000_000 + '"c" d,e\n')
    reader = CsvReader(CsvDialect(separator=",", header=True))
    with pytest.raises(UserError, match="line 1000002: a quote is not closed, or followed by more"):
        list(reader.batches(file, SCHEMA))


@pytest.mark.parametrize("name", ["latin 1.csv", "latin 1.csv.GZ"])
def test_the_command_that_a_refusal_names_gives_a_file_that_is_read(name: str, tmp_path: Path) -> None:
    file, data = tmp_path / name, "text\nM\u00fchle\n".encode("latin-1")
    file.write_bytes(gzip.compress(data) if name.endswith("GZ") else data)
    reader = CsvReader(CsvDialect(separator=",", header=True))
    with pytest.raises(UserError, match="no UTF-8") as caught:
        list(reader.batches(file, SCHEMA))
    subprocess.run(caught.value.hint, shell=True, check=True, cwd=tmp_path)
    assert outcome(tmp_path / "utf8-latin 1.csv") == ["M\u00fchle"]
