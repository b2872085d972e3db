import threading

from verify.shards import CONCURRENT, read_concurrently


def test_shards_are_read_read_concurrently_and_few_are_held() -> None:
    together, begun = threading.Barrier(CONCURRENT), []

    def read(batch: int) -> int:
        begun.append(batch)
        together.wait(10)
        return batch * batch

    found = read_concurrently(read, iter(range(4 * CONCURRENT)))
    assert next(found) == (0, 0)
    assert len(begun) == CONCURRENT
    assert list(found) == [(batch, batch * batch) for batch in range(1, 4 * CONCURRENT)]


def test_nothing_to_read_is_nothing() -> None:
    assert list(read_concurrently(lambda batch: batch, [])) == []
