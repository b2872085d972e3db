"""Notices to spot machines: ``python -m bench.preemption``.

Four workers do a job, and every few seconds one of them that computes is told to stop by SIGTERM, as a machine is that
will be taken away. Another starts in its place. For each notice: what became of the batch that the worker had in hand,
and after how many seconds. Once with batches that end within the worker's time, and once with longer ones."""

import json
import os
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from bench.chaos.place import Place
from bench.chaos.rig import Rig, open_rig
from bench.tiny_model import JARGON, save_tiny_model
from contract.redis.producing import ProducerLedger
from contract.settings import put
from engine_build.build import build
from engine_build.prepare import EngineOptions
from worker.heartbeat import command_id

_WORKERS = 4
_BATCH_ROWS = 10
_PATIENCE = 60.0
"""Seconds in which a batch must have a shard, or be elsewhere."""


@dataclass(frozen=True)
class Notice:
    """What became of the batch of a worker that was told to stop. Seconds are from the signal on."""

    finished: bool
    """Whether the batch had its shard before another worker had it."""
    back: float | None
    """When its message was back in the queue, or with another worker; None where it was finished."""
    elsewhere: float | None
    """When another worker computed it; None where it was finished."""
    ended: float
    """When the worker's process was gone."""


def notice(rig: Rig, number: int) -> Notice | None:
    """Tell a worker to stop and watch its batch; None where it has none."""
    ledger, job, worker = ProducerLedger(patience=60), rig.job(), rig.workers[number]
    own = command_id(worker.pid)
    batch = next((beat.batch for beat in ledger.heartbeats() if beat.command == own and beat.batch is not None), None)
    if job is None or batch is None or worker.poll() is not None:
        return None
    worker.terminate()
    began = time.monotonic()
    rig.fault()
    back = elsewhere = ended = None
    finished = False
    while (passed := time.monotonic() - began) < _PATIENCE:
        if ended is None and worker.poll() is not None:
            ended = passed
        others = {beat.batch for beat in ledger.heartbeats() if beat.command != own}
        if back is None and (batch in others or batch in ledger.waiting(job)):
            back = passed
        if elsewhere is None and batch in others:
            elsewhere = passed
        finished = finished or (back is None and job.shard(batch).exists())
        if ended is not None and (finished or elsewhere is not None or job.shard(batch).exists()):
            return Notice(finished, back, elsewhere, ended)
        time.sleep(0.02)
    raise RuntimeError(f"batch {batch} is neither done nor elsewhere after {_PATIENCE:.0f} s")


def run(folder: Path, engines: Path, *, seconds: float, rows: int, notices: int, seed: int) -> dict[str, Any]:
    """One job under notices.

    Args:
        folder: for logs and shards.
        engines: has the engine.
        seconds: that a batch takes.
        rows: of the job.
        notices: how many.
        seed: decides whom, and when.
    """
    dataset = folder.with_suffix(".jsonl")
    dataset.write_text("".join(JARGON.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]), encoding="utf-8")
    env = {"CHAOS_SECONDS": str(seconds), "EMBEDMILL_THREADS": "1", "EMBEDMILL_REDIS_PATIENCE": "60"}
    chance, seen = random.Random(seed), list[Notice]()
    with open_rig(Place.fresh(folder, engines, env), dataset, batch_rows=_BATCH_ROWS) as rig:
        put(redis_url=rig.servers.url)
        rig.start(_WORKERS)
        ledger = ProducerLedger(patience=60)
        rig.wait_for(lambda: len(ledger.heartbeats()) >= 2 * _WORKERS and rig.commits)
        while rig.running and len(seen) < notices:
            time.sleep(chance.uniform(0.2, 1.5))
            if found := notice(rig, chance.randrange(_WORKERS)):
                seen.append(found)
                click.echo(found)
        status = rig.finish()
        job = rig.job()
        return {
            "batch_seconds": seconds,
            "batches": job.batches if job else 0,
            "shards": len(job.committed()) if job else 0,
            "exit_status": status,
            "notices": len(seen),
            "finished": sum(one.finished for one in seen),
            "work_repeated_percent": round(100 * (rig.work() / rows - 1), 2),
            "back_s": _spread([one.back for one in seen]),
            "elsewhere_s": _spread([one.elsewhere for one in seen]),
            "ended_s": _spread([one.ended for one in seen]),
            "each": [asdict(one) for one in seen],
        }


def _spread(values: list[float | None]) -> dict[str, float]:
    known = [value for value in values if value is not None]
    return {"median": round(median(known), 2), "most": round(max(known), 2)} if known else {}


@click.command()
@click.option("--notices", default=20, show_default=True, help="In each of the two jobs.")
@click.option("--seed", default=0, show_default=True, help="Decides which worker is told to stop, and when.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where the record goes.")
def main(notices: int, seed: int, file: Path | None) -> None:
    """Measure what a notice costs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        put(engines=str(folder / "engines"))
        build(
            str(save_tiny_model(folder / "tiny")), EngineOptions("tiny"), say=lambda line: None, step=lambda text: None
        )
        records = [
            run(folder / f"{seconds:g}", folder / "engines", seconds=seconds, rows=rows, notices=notices, seed=seed)
            for seconds, rows in ((2.0, 1500), (12.0, 400))
        ]
    for record in records:
        click.echo(json.dumps({name: value for name, value in record.items() if name != "each"}))
    if file:
        file.write_text(json.dumps({"cores": os.cpu_count(), "runs": records}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="python -m bench.preemption")
