"""Which texts have a vector: the producer leaves the others out, and the verifier expects that."""


def unless_blank(text: str | None) -> str | None:
    """A row's own text; None where there is none, or nothing but white space.

    White space is what ``str.strip`` takes away. Such a text would have the vector of the special tokens alone, which
    is near to everything in a search.

    Args:
        text: without the prefix, the template of several columns filled in; None where the dataset has none.
    """
    return text if text and text.strip() else None
