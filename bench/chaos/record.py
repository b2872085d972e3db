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
    outcome = compare(rig.job(), undisturbed)
    injected = len(rig.faults) or len(fault.failed)
    left = rig.left_on_redis()
    cut = rig.cut_recoveries
    return {
        "fault": fault.name,
        "injected": injected,
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
        and outcome.failed == fault.failed
        and (injected > 0 or fault.once is None),
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
