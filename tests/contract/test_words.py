import pytest

from contract.words import count


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (1, ("row",), "1 row"),
        (0, ("row",), "0 rows"),
        (2307, ("row",), "2,307 rows"),
        (1, ("batch", "batches"), "1 batch"),
        (2, ("batch", "batches"), "2 batches"),
        (1_000_001, ("sampled text",), "1,000,001 sampled texts"),
    ],
)
def test_what_is_counted_agrees_with_its_number(number: int, words: tuple[str, ...], said: str) -> None:
    assert count(number, *words) == said
