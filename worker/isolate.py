"""Finding the rows that a batch fails on, by halving, also when they kill the process.

Before a part of the batch is computed, the search's state is saved on Redis. If the process dies, the next one loads it
and halves the part that was being computed. A single row must kill the process twice before it is blamed: an operator's
``kill`` is not the row's fault. Example: of 8 rows, row 5 raises. 0–8 fails, 0–4 passes, 4–8 fails, 4–6 fails, 4–5
passes, 5–6 fails and is recorded, 6–8 passes.
"""

from collections.abc import Callable

from pydantic import BaseModel

Part = tuple[int, int]
"""Indices of rows in the batch: the first, and the one after the last."""

_DEATHS = 2


class Search(BaseModel):
    """How far the search is."""

    todo: list[Part]
    """Parts that are not known to be good."""
    trying: Part | None = None
    """The part that is being computed; if a process finds one when it begins, the last process died in it."""
    deaths: dict[int, int] = {}
    """How often a single row's process died."""
    failed: dict[int, str] = {}
    """Rows that fail, and how."""


def failing_rows(
    rows: int, attempt: Callable[[range], object], saved: bytes | str | None, save: Callable[[str], None]
) -> dict[int, str]:
    """The rows of a batch that cannot be computed.

    Args:
        rows: how many rows the batch has.
        attempt: computes the rows of these indices; raises, or kills the process, if one of them cannot be computed.
        saved: what ``save`` was last given for this batch; None if nothing.
        save: keeps the search's state where the next process finds it.

    Returns:
        Index of the row in the batch → error, for each such row. About ``2·log2(rows)`` attempts for one bad row.
    """
    search = Search.model_validate_json(saved) if saved else Search(todo=[(0, rows)])
    if search.trying:
        row = search.trying[0]
        if search.trying[1] - row > 1:
            search.todo += _halves(search.trying)
        elif search.deaths.setdefault(row, 0) + 1 < _DEATHS:
            search.deaths[row] += 1
            search.todo.append(search.trying)
        else:
            search.failed[row] = "the process died while computing this row"
        search.trying = None
    while search.todo:
        part = search.trying = search.todo.pop()
        save(search.model_dump_json())
        try:
            attempt(range(*part))
        except Exception as error:
            if part[1] - part[0] > 1:
                search.todo += _halves(part)
            else:
                search.failed[part[0]] = f"{type(error).__name__}: {error}"
        search.trying = None
    save(search.model_dump_json())
    return search.failed


def _halves(part: Part) -> list[Part]:
    first, last = part
    middle = (first + last) // 2
    return [(middle, last), (first, middle)]
