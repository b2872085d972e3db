"""``python -m verify``."""

from collections.abc import Callable

from contract.entry import run


def _command() -> Callable[..., object]:
    from verify.command import main

    return main


if __name__ == "__main__":
    run(_command, "python -m verify")
