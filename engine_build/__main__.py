"""``python -m engine_build``."""

from collections.abc import Callable

from contract.entry import run


def _command() -> Callable[..., object]:
    from engine_build.command import main

    return main


if __name__ == "__main__":
    run(_command, "python -m engine_build")
