"""The libraries' own messages, collected instead of printed."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers


class _Collector(logging.Handler):
    """Keeps the lines of a log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def quietly() -> Iterator[list[str]]:
    """Have transformers and sentence-transformers print nothing in the ``with`` block.

    Yields:
        The latter's warnings, which are added as they come.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    collector, logger = _Collector(), logging.getLogger("sentence_transformers")
    before = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's own kind are notes to whoever writes the folder
            yield collector.lines
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before[0])
        logger.propagate = before[1]
