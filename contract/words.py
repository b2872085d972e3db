"""Words of messages."""


def count(number: int, one: str, many: str = "") -> str:
    """A number and what it counts: ``1 row``, ``2,307 rows``, ``0 batches``.

    Args:
        number: how many there are.
        one: the word for one of them.
        many: the word for more; ``one`` with an s if it is not given.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
