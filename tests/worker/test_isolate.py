import numpy as np
import pytest

from worker.isolate import failing_rows


class Died(BaseException):
    """Stands for the end of the process: nothing in the search catches it."""


class Process:
    """Rows that raise and rows that kill, and the note that outlives a process."""

    def __init__(self, raising: set[int], killing: set[int]) -> None:
        self.raising, self.killing = raising, killing
        self.note: bytes | None = None
        self.attempts = self.deaths = 0

    def save(self, note: str) -> None:
        self.note = note.encode()

    def attempt(self, places: range) -> None:
        self.attempts += 1
        if self.killing & set(places):
            raise Died
        if self.raising & set(places):
            raise ValueError("no such token")

    def search(self, rows: int) -> dict[int, str]:
        while True:
            try:
                return failing_rows(rows, self.attempt, self.note, self.save)
            except Died:
                self.deaths += 1


@pytest.mark.parametrize("seed", range(20))
def test_the_failing_rows_are_found_and_no_others(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = int(random.integers(1, 1025))
    chosen = set(random.choice(rows, min(rows, int(random.integers(0, 4))), replace=False).tolist())
    killing = {row for row in chosen if random.random() < 0.5}
    process = Process(chosen - killing, killing)
    errors = process.search(rows)
    assert set(errors) == chosen
    assert all("the process died" in errors[row] for row in killing)
    assert all(errors[row] == "ValueError: no such token" for row in chosen - killing)


def test_one_bad_row_of_1024_takes_about_twice_ten_attempts() -> None:
    raising, killing = Process({700}, set()), Process(set(), {700})
    raising.search(1024)
    killing.search(1024)
    assert raising.attempts <= 21
    assert killing.deaths <= 12


def test_a_batch_without_a_bad_row_is_tried_once() -> None:
    process = Process(set(), set())
    assert process.search(1024) == {}
    assert process.attempts == 1


def test_a_row_is_not_blamed_for_one_death_of_its_process() -> None:
    process = Process(set(), set())
    failing_rows(1, process.attempt, None, process.save)
    killed_once = b'{"todo": [], "trying": [0, 1]}'
    assert failing_rows(1, process.attempt, killed_once, process.save) == {}
    killed_twice = b'{"todo": [], "trying": [0, 1], "deaths": {"0": 1}}'
    assert set(failing_rows(1, process.attempt, killed_twice, process.save)) == {0}
