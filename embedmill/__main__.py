"""``embedmill``, and ``python -m embedmill``."""

from collections.abc import Callable

from contract.entry import run


def _command() -> Callable[..., object]:
    from embedmill.command import main

    return main


def main() -> None:
    """The console script."""
    run(_command, "embedmill")


if __name__ == "__main__":
    main()
