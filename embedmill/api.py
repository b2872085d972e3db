"""``embedmill.embed``: runs the command in a process of its own, so that it works in a notebook and in a thread, and
leaves the calling process as it was."""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import IO, Any, Literal, overload

import pyarrow as pa
from rich.console import Console

from contract.errors import UserError
from contract.job import Job, load_job
from contract.shard import open_file
from contract.store import Location, location
from contract.verdict import Verdict, load_verdict
from embedmill.display import display_on
from embedmill.environment import check_packages, python, python_path
from embedmill.events import Event
from embedmill.processes import die_with_parent, end_group
from producer.estimate import Estimate

_PATIENCE = 15.0
"""Seconds that the command has to end its processes."""


class NotVerified(UserError):
    """A job was embedded, and the verifier found fault with it.

    Args:
        message: which checks failed.
        job: the job.
    """

    def __init__(self, message: str, job: "Embedded") -> None:
        super().__init__(message)
        self.job = job


class Embedded:
    """A job whose every row is embedded.

    Args:
        job: its record.
        verdict: the verifier's.
    """

    def __init__(self, job: Job, verdict: Verdict) -> None:
        self._job = job
        self.verdict = verdict

    @property
    def folder(self) -> Location:
        """Where it lies; ``data`` below it has the shards."""
        return self._job.folder

    def reader(self) -> pa.RecordBatchReader:
        """The rows in the dataset's order, one shard in memory at a time.

        Columns: ``row_id`` int64, ``embedding`` a list of float32 (or what ``dtype`` says) that is null for a row
        without a text (of a sparse model ``indices`` and ``weights``), ``n_tokens`` int32, ``truncated`` bool,
        ``error`` string, ``text_hash`` binary, and kept columns.
        """
        with open_file(self._job.shard(0)) as file:
            schema = file.schema_arrow.remove_metadata()
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for number in range(self._job.batches):
            with open_file(self._job.shard(number)) as file:
                yield from file.read().cast(schema).to_batches()

    def vectors(self) -> pa.Table:
        """The rows of ``reader`` at once: row i of the table is row i of the dataset."""
        return self.reader().read_all()

    def __repr__(self) -> str:
        state = "verified" if self.verdict.passed else "not verified"
        return f"<embedmill job {self._job.id}, {state}, in {self.folder}>"


@overload
def embed(
    dataset: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    progress: bool = True,
    dry_run: Literal[False] = False,
    **options: object,
) -> Embedded: ...


@overload
def embed(
    dataset: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    progress: bool = True,
    dry_run: Literal[True],
    **options: object,
) -> Estimate: ...


def embed(
    dataset: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    progress: bool = True,
    dry_run: bool = False,
    **options: object,
) -> Embedded | Estimate:
    """Embed a dataset and verify the vectors, with nothing that was started before. The same call goes on where an
    interrupted one was.

    Args:
        dataset: a file, a folder, a pattern, an address or a dataset of the Hub.
        model: Hub id or local folder.
        progress: whether to show how far it is.
        dry_run: whether to say what it takes instead, in rows, tokens, bytes, seconds and, with ``dollars_per_hour``,
            dollars.
        options: those of ``embedmill embed``, such as ``text="{title}\\n{body}"``, ``text_column="body"``,
            ``output="vectors"``, ``dtype="float16"``, ``limit=1000``, ``no_header=True``, ``normalize=False``,
            ``keep_columns=["title"]``.

    Returns:
        The job, or the estimate.

    Raises:
        UserError: what the command shows as its one line.
        NotVerified: every row has its vector, and a check of the verifier failed.
        KeyboardInterrupt: no process is left, and the same call goes on.
    """
    check_packages()
    flags = flags_of(options | {"dry_run": dry_run})
    command = ["-m", "embedmill", "embed", "--model", os.fspath(model), *flags, "--", os.fspath(dataset)]
    with ExitStack() as stack:
        display = stack.enter_context(display_on(Console(stderr=True, markup=False))) if progress else None
        result = _run(command, display.show if display else lambda event: None)
    if "estimate" in result:
        return Estimate.model_validate(result["estimate"])
    job = load_job(location(result["job"]))
    verdict = load_verdict(job)
    if verdict is None:
        raise UserError(f"{job.folder} has no verdict", "somebody removed it", "call this again")
    done = Embedded(job, verdict)
    if not verdict.passed:
        raise NotVerified(f"{job.folder} is not verified: {', '.join(verdict.failed_checks)}", done)
    return done


def flags_of(options: dict[str, object]) -> Iterator[str]:
    """The command's options: ``keep_columns=["a", "b"]`` is ``--keep-columns a,b``."""
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is None or (value is False and name != "normalize"):
            continue
        if isinstance(value, bool):
            yield f"--{flag if value else f'no-{flag}'}"
            continue
        several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
        yield f"--{flag}={','.join(map(str, value)) if several else value}"  # type: ignore[call-overload]


def _run(command: list[str], show: Callable[[Event], None]) -> dict[str, Any]:
    """Run the command.

    Args:
        command: without the interpreter.
        show: takes the events.

    Returns:
        ``job``, its folder, or ``estimate``.

    Raises:
        UserError: the command's.
    """
    reading, writing = os.pipe()
    with ExitStack() as stack:
        lines = stack.enter_context(os.fdopen(reading, "rb"))
        place = command.index("--")
        try:
            started = subprocess.Popen(
                python(*command[:place], "--events", str(writing), *command[place:]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=os.environ | python_path(),
                pass_fds=[writing],
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends that one
                preexec_fn=die_with_parent,
            )
        finally:
            os.close(writing)
        stack.callback(end_group, started, patience=_PATIENCE)
        said: deque[str] = deque(maxlen=20)
        notes = threading.Thread(target=_pass_on, args=(started.stderr, said), daemon=True)
        notes.start()
        result = _listen(lines, show)
        notes.join()
    if isinstance(result, UserError):
        raise result
    if result is None:  # it did not come so far, or died
        last = next((line for line in reversed(said) if line), "it said nothing")
        raise UserError(last.removeprefix("Error: "))
    return result


def _listen(lines: IO[bytes], show: Callable[[Event], None]) -> dict[str, Any] | UserError | None:
    for line in lines:
        record: dict[str, Any] = json.loads(line)
        if "event" in record:
            show(Event(**record["event"]))
        elif "error" in record:
            return UserError(*record["error"])
        else:
            return record
    return None


def _pass_on(stream: IO[bytes], said: deque[str]) -> None:
    """Show the command's notes, but not its error, which becomes an exception."""
    with stream:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            said.append(line)
            if line and not line.startswith(("Error: ", "Usage: ", "Try ")):
                print(line, file=sys.stderr, flush=True)
