"""``embedmill``, and ``python -m embedmill``."""

import atexit
from collections.abc import Callable

from contract.entry import run
from embedmill.leaving import leave


def _command() -> Callable[..., object]:
    from embedmill.command import main

    return main


def main() -> None:
    """The console script."""
    status = 1
    atexit.register(lambda: leave(status))  # before all that is imported for a command, and so called after it
    try:
        run(_command, "embedmill")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        raise


if __name__ == "__main__":
    main()
