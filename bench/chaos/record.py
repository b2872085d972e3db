"""What is recorded of a run, and how it is shown."""

from statistics import median
from typing import Any

from rich.table import Table

from bench.chaos.fault import Fault
from bench.chaos.outcome import compare
from bench.chaos.rig import Rig
from contract.job import Job

UNDISTURBED = Fault("undisturbed")


def record_of(fault: Fault, rig: Rig, undisturbed: Job, status: int, seconds: float) -> dict[str, Any]:
    """A run under one kind of fault."""
    injected = len(rig.faults) or len(fault.failed)
    found = figures(rig, undisturbed, status, seconds, failed=fault.failed)
    enough = injected > 0 or fault.once is None
    return {"fault": fault.name, "injected": injected, **found, "passed": found["passed"] and enough}


def figures(rig: Rig, undisturbed: Job, status: int, seconds: float, *, failed: tuple[int, ...] = ()) -> dict[str, Any]:
    """What a run came to, beside the undisturbed one.

    Args:
        rig: the run, at its end.
        undisturbed: the job without faults.
        status: the producer's exit status.
        seconds: from the start to the end.
        failed: the rows that were made to fail: these, and no others, must have an error.
    """
    outcome = compare(rig.job(), undisturbed)
    left, cut = rig.left_on_redis(), rig.cut_recoveries
    return {
        "rows": outcome.rows,
        "rows_lost": outcome.lost,
        "rows_twice": outcome.twice,
        "rows_different": outcome.different,
        "rows_with_error": list(outcome.failed),
        "work_repeated": round(100 * (rig.work() / outcome.rows - 1), 1),
        "recovery_s": round(rig.recovery, 1),
        "cut_batches": len(cut),
        "cut_batches_s": {"median": round(median(cut), 1), "most": round(max(cut), 1)} if cut else {},
        "seconds": round(seconds, 1),
        "exit_status": status,
        "left_on_redis": left,
        "passed": status == 0
        and not left
        and not (outcome.lost or outcome.twice or outcome.different)
        and outcome.failed == failed,
    }


def table_of(records: list[dict[str, Any]]) -> Table:
    """All runs."""
    table = Table("fault", title="The job under faults, against the undisturbed one", title_justify="left")
    columns = ("injected", "rows lost", "twice", "different", "work repeated", "recovery", "batch back", "seconds", "")
    for name in columns:
        table.add_column(name, justify="right")
    for record in records:
        back = record["cut_batches_s"].get("most")
        table.add_row(
            record["fault"],
            str(record["injected"]),
            *(str(record[key]) for key in ("rows_lost", "rows_twice", "rows_different")),
            f"{record['work_repeated']:.1f} %",
            f"{record['recovery_s']:.1f} s",
            "" if back is None else f"{back:.1f} s",
            f"{record['seconds']:.0f}",
            "pass" if record["passed"] else "FAIL",
        )
    return table
