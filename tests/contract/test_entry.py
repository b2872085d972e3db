"""How a command begins."""

import gc
import signal
from collections.abc import Callable

import pytest

from contract.entry import run, uncollected


def test_what_is_imported_is_not_looked_through_for_garbage_and_what_comes_later_is() -> None:
    with uncollected():
        assert not gc.isenabled()
        imported = [["held by a module"]]
    later = [["made by a command"]]
    assert gc.isenabled()
    seen = {id(one) for one in gc.get_objects()}
    assert (id(imported) in seen, id(later) in seen) == (False, True)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (None, "No module named 'tokenizers'"),
        (TypeError("no class"), "No module named 'tokenizers': TypeError('no class')"),  # as transformers has it
    ],
)
def test_a_package_that_is_not_installed_is_one_line(
    first: Exception | None, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def load() -> Callable[..., object]:
        raise ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers") from first

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            run(load, "embedmill")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Error: embedmill: {said}; install what it needs: pip install ")
