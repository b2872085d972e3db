import threading

from verify import shards
from verify.shards import side_by_side


def test_shards_are_read_side_by_side_and_few_are_held() -> None:
    together, begun = threading.Barrier(shards._AT_ONCE), []

    def read(batch: int) -> int:
        begun.append(batch)
        together.wait(10)
        return batch * batch

    found = side_by_side(read, iter(range(4 * shards._AT_ONCE)))
    assert next(found) == (0, 0)
    assert len(begun) == shards._AT_ONCE
    assert list(found) == [(batch, batch * batch) for batch in range(1, 4 * shards._AT_ONCE)]


def test_nothing_to_read_is_nothing() -> None:
    assert list(side_by_side(lambda batch: batch, [])) == []
