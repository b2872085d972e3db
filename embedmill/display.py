"""What a person sees of a run: one live display in a terminal or a notebook, else a line now and then."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from contract.words import count
from embedmill.events import STEPS, Event, Sender, Step
from producer.display import LINE_EVERY


class Display(Protocol):
    """Shows events, between ``__enter__`` and ``__exit__``."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def show(self, event: Event) -> None:
        """Show how far a step is."""

    def paused(self) -> contextlib.AbstractContextManager[object]:
        """In the ``with`` block something else has the terminal."""


class Pace:
    """Speed and remaining time of a step, counted from its first event: what was there before is no speed."""

    def __init__(self) -> None:
        self._first: dict[Step, tuple[float, Event]] = {}

    def of(self, event: Event, now: float) -> str:
        """Such as ``51 rows/s, 9,120 tokens/s, 0:00:31 left``; empty while nothing is known.

        Args:
            event: how far the step is.
            now: by the monotonic clock.
        """
        began, first = self._first.setdefault(event.step, (now, event))
        rows, seconds = event.done - first.done, now - began
        if rows <= 0 or seconds <= 0:
            return ""
        parts = [f"{rows / seconds:,.0f} rows/s"]
        if event.tokens > first.tokens:
            parts.append(f"{(event.tokens - first.tokens) / seconds:,.0f} tokens/s")
        if event.total and not event.ended:
            parts.append(f"{timedelta(seconds=round((event.total - event.done) * seconds / rows))} left")
        return ", ".join(parts)


class Live:
    """A line for each step, with a bar.

    Args:
        console: a terminal.
        steps: those that the run will have.
    """

    def __init__(self, console: Console, steps: Sequence[Step]) -> None:
        columns = (TextColumn("{task.description:<12}"), BarColumn(20), _Done(), TextColumn("{task.fields[text]}"))
        self._bars = Progress(*columns, console=console)
        self._tasks: dict[Step, TaskID] = {
            step: self._bars.add_task(step, start=False, total=1, text="") for step in steps
        }
        self._pace = Pace()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        task = self._tasks[event.step]
        pace = self._pace.of(event, time.monotonic())
        if event.ended:  # a bar that is full and a clock that stands
            whole = event.total or 1
            self._bars.update(task, total=whole, completed=whole, text=", ".join(filter(None, [event.text, pace])))
            return
        self._bars.start_task(task)
        text = ", ".join(filter(None, [pace, event.text]))
        self._bars.update(task, total=event.total, completed=event.done, text=text)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()


class _Done(ProgressColumn):
    """``256/500`` where rows are counted, else for how long the step has gone on."""

    def render(self, task: Task) -> Text:
        if task.total and task.total > 1:
            return Text(f"{task.completed:,.0f}/{task.total:,.0f}", style="progress.download")
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(str(timedelta(seconds=int(elapsed or 0))) if task.started else "", style="progress.elapsed")


class Lines:
    """A line when a step begins, and each ten seconds in which something happens.

    Args:
        console: takes the lines.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._pace = console, Pace()
        self._last: Event | None = None
        self._printed = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def show(self, event: Event) -> None:
        last, now = self._last, time.monotonic()
        pace, begins = self._pace.of(event, now), last is None or last.step != event.step
        if begins or (event.ended and event != last) or (now - self._printed >= LINE_EVERY and event != last):
            amount = f"{event.done:,} of {count(event.total, 'row')}" if event.total else ""
            line = ", ".join(filter(None, [amount, pace, event.text]))
            self._console.print(f"{event.step}: {line}", highlight=False, soft_wrap=True)
            self._printed, self._last = now, event

    def paused(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


class Notebook:
    """tqdm's bars, one for each step that has begun."""

    def __init__(self) -> None:
        self._bars: dict[Step, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, event: Event) -> None:
        from tqdm.auto import tqdm

        if event.step not in self._bars:
            self._bars[event.step] = tqdm(desc=event.step, total=event.total, initial=event.done, unit="row")
        bar = self._bars[event.step]
        if event.total:
            if bar.total != event.total:
                bar.reset(event.total)
            bar.update(event.done - bar.n)
        bar.set_postfix_str(event.text)

    def paused(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


class Piped:
    """Sends the events to another process.

    Args:
        sender: takes it.
    """

    def __init__(self, sender: Sender) -> None:
        self.show = sender.event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def paused(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


def display_on(console: Console, steps: Sequence[Step] = STEPS) -> Display:
    """The display that fits where this process runs: a notebook, a terminal, or neither."""
    if "ipykernel" in sys.modules:
        return Notebook()
    return Live(console, steps) if console.is_terminal else Lines(console)
