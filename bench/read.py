"""``python -m bench.read``: how long the producer takes to open a local file, and the memory that it needs.

Each measurement is a process of its own with an empty cache of ``datasets``; imports are not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
import pyarrow.parquet as pq

from bench.machine import machine
from bench.texts import write

_EPILOG = """\b
Examples:
  python -m bench.read --rows 375000 --json docs/benchmarks/read.json
  python -m bench.read --rows 75000 --tree ../another-checkout

375,000 reviews are 500 MB.
"""

_SCRIPT = """
import json, re, sys, time
from producer.dataset import open_dataset
began = time.perf_counter()
rows = open_dataset(sys.argv[1]).texts(range(1024))
seconds = time.perf_counter() - began
peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]  # ru_maxrss counts the parent's too
print(json.dumps([seconds, int(peak) / 1024]))
"""


@click.command(epilog=_EPILOG)
@click.option("--rows", type=click.IntRange(min=1024), default=375_000, show_default=True, help="Reviews in a file.")
@click.option("--kinds", default="csv,jsonl,parquet", show_default=True, help="Kinds of files, separated by commas.")
@click.option(
    "--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Measurements; their median is reported."
)
@click.option("--tree", type=click.Path(path_type=Path, exists=True), help="A checkout to measure instead of this one.")
@click.option("--system", default="embedmill", show_default=True, help="The name in the records.")
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="File to add the records to.")
def main(rows: int, kinds: str, repeat: int, tree: Path | None, system: str, target: Path | None) -> None:
    """Measure how long the producer takes to open a file that bench.texts makes, up to its first 1,024 texts."""
    records = json.loads(target.read_text(encoding="utf-8")) if target and target.exists() else []
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as name:
        for kind in kinds.split(","):
            file = _write_file(Path(name), kind, rows)
            runs = [_measure(file, Path(name), tree or Path(__file__).parent.parent) for _ in range(repeat)]
            seconds, megabytes = (statistics.median(values) for values in zip(*runs, strict=True))
            records.append(
                {
                    "system": system,
                    "file": kind,
                    "megabytes": round(file.stat().st_size / 1e6, 1),
                    "rows": rows,
                    "seconds": round(seconds, 3),
                    "peak_mib": round(megabytes, 1),
                    "machine": machine(),
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
            click.echo(f"{system}, {kind}, {rows:,} rows: {seconds:.2f} s, {megabytes:,.0f} MiB")
            file.unlink()
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


def _write_file(folder: Path, kind: str, rows: int) -> Path:
    """A file of this kind with so many reviews."""
    if kind != "jsonl":
        write(folder / f"reviews.{kind}", "reviews", rows)
        return folder / f"reviews.{kind}"
    write(folder / "source.parquet", "reviews", rows)
    with (folder / "reviews.jsonl").open("w", encoding="utf-8") as file:
        for batch in pq.ParquetFile(folder / "source.parquet").iter_batches(1000):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
    (folder / "source.parquet").unlink()
    return folder / "reviews.jsonl"


def _measure(file: Path, folder: Path, tree: Path) -> tuple[float, float]:
    """Seconds until the first 1,024 texts are read, and the process's peak memory in MiB."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        environment = os.environ | {"HF_DATASETS_CACHE": cache, "PYTHONPATH": str(tree)}
        command = [sys.executable, "-c", _SCRIPT, str(file)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
        seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
        return seconds, megabytes


if __name__ == "__main__":
    main(prog_name="python -m bench.read")
