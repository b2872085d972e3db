"""How a command begins and ends, so that Ctrl-C at any instant is one line, exit status 130, and nothing left behind.

While modules are imported, Ctrl-C ends the process at once: an exception there would be shown from deep inside a
library, or swallowed by it, and there is nothing yet to put in order. Afterwards it is a ``KeyboardInterrupt``, and
what the command has begun is undone on its way. Whoever swallows that has five seconds left.
"""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from contract.deferred import deferred

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and SIGINT's number."""

_PATIENCE = 5.0
"""Seconds after Ctrl-C in which a command puts its things in order."""

_SHOW_CURSOR = "\x1b[?25h"


def end_at_once() -> None:
    """From now on Ctrl-C ends this process, and not one that was forked from it."""
    pid = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == pid:
            _end()

    signal.signal(signal.SIGINT, end)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """In the ``with`` block, which imports large packages and does nothing else, Ctrl-C ends the process at once."""
    before = signal.getsignal(signal.SIGINT)
    if before is not _interrupt:  # no command's own process, such as a test's
        yield
        return
    end_at_once()
    try:
        with uncollected():
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What the ``with`` block imports is never looked through for garbage: modules stay to the process's end. With
    PyTorch, the searches during the imports and at the end take a third of the imports' CPU time.

    Nor is scikit-learn imported: sentence-transformers needs it for one distance of sparse vectors, and it is a sixth
    of the imports.

    For a process of embedmill's own: garbage that is there already stays too.
    """
    gc.disable()
    try:
        with deferred("sklearn.metrics"):
            yield
    finally:
        gc.freeze()
        gc.enable()


def run(load: Callable[[], Callable[..., object]], name: str) -> None:
    """Run a click command as this process's program.

    Args:
        load: imports the command.
        name: how it was called, for its help.
    """
    end_at_once()
    try:
        with uncollected():
            command = load()
            import click  # here: it is part of what may be interrupted
    except ModuleNotFoundError as error:
        say(_without(error, name))
        sys.exit(1)

    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGINT, _interrupt)
    status: object = 0
    try:
        status = command(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except ModuleNotFoundError as error:  # of what is imported where it is used
        say(_without(error, name))
        status = 1
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted")
        status = INTERRUPTED
    except SystemExit as error:
        status = error.code
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status if isinstance(status, int) else 0)


def _without(error: ModuleNotFoundError, name: str) -> str:
    """What to say of a package that is not installed: each of embedmill's extras has what some commands need.

    transformers has an error of its own, such as ``Could not import module 'Trainer'``; what was missing is its cause.
    """
    first: BaseException = error
    while first.__cause__:
        first = first.__cause__
    found = str(first) if first is error else f"{error}: {first!r}"
    return f"Error: {name}: {found}; install what it needs: pip install 'embedmill[local]'"


def _interrupt(number: int, frame: FrameType | None) -> None:
    import threading

    late = threading.Timer(_PATIENCE, _end)
    late.daemon = True
    late.start()
    raise KeyboardInterrupt


def _unraisable(caught: "sys.UnraisableHookArgs") -> None:
    """A ``KeyboardInterrupt`` that hit a finalizer or a callback, where Python would show and forget it, comes
    again."""
    if issubclass(caught.exc_type, KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    else:
        sys.__unraisablehook__(caught)


def _end() -> None:
    say("Interrupted")
    os._exit(INTERRUPTED)


def say(line: str) -> None:
    """Write a line to stderr, also in a signal handler."""
    with contextlib.suppress(OSError):
        end = _SHOW_CURSOR if os.isatty(2) else ""
        os.write(2, f"{end}{line}\n".encode())
