"""``python -m producer``."""

from collections.abc import Callable

from contract.entry import run


def _command() -> Callable[..., object]:
    from producer.command import main

    return main


if __name__ == "__main__":
    run(_command, "python -m producer")
