"""``python -m embedmill.child``: builds an engine, or verifies a job, for the process that started it.

So the process that started it needs no PyTorch. Here PyTorch is imported once, which takes longer than anything else in
a small job, and each task runs in a process that is forked from this one. Before the fork only libraries are imported
and none of their functions is called, so the verifier shares no module of embedmill's and no value with the build. A
task is one line of JSON: the folder of the engines, and the request. Its process writes ``embedmill.events`` into a
pipe; what libraries print goes to its log.
"""

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

from contract.entry import uncollected
from contract.errors import UserError
from embedmill.events import Event, Sender
from embedmill.leaving import leave
from embedmill.processes import die_with_parent


def build_engine(request: dict[str, Any], sender: Sender) -> None:
    """Build an engine, and on a machine with a GPU its plan, as ``python -m engine_build`` does.

    Args:
        request: ``model``, and the fields of ``EngineOptions``.
        sender: takes the events.
    """
    from engine_build.build import build
    from engine_build.prepare import EngineOptions
    from worker.runtime.gpus import lacking

    model = request.pop("model")

    def step(text: str) -> None:
        sender.event(Event("engine", text))

    spec, _ = build(model, EngineOptions(**request), say=lambda line: sender.send(note=line), step=step)
    if not lacking() and not spec.plans and spec.onnx_sha256:
        from engine_build.plan_command import build_plan
        from engine_build.profiles import PlanOptions

        step("building a TensorRT plan for this GPU")
        build_plan(spec, PlanOptions(), gpu=0)
    sender.send(result=spec.fingerprint)


def verify_job(request: dict[str, Any], sender: Sender) -> None:
    """Verify a job.

    Args:
        request: ``job``, a folder; ``sample``, rows, None for all; ``seed``.
        sender: takes the events.
    """
    from contract.jobs import find_job
    from verify.command import ALL, run

    verdict = run(find_job(request["job"]), request["sample"] or ALL, request["seed"], _Sent(sender))
    sender.send(result=verdict.passed)


class _Sent:
    """Passes on what the verifier does."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        self._sender.event(Event("verification", what))
        yield

    @contextlib.contextmanager
    def comparing(self, rows: int) -> Iterator[Callable[[], None]]:
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            self._sender.event(Event("verification", "encode() in FP32", done, rows))

        self._sender.event(Event("verification", "encode() in FP32", 0, rows))
        yield step
        self._sender.event(Event("verification", "writing the report", rows, rows))

    def judged(self, verdict: object, folder: object) -> None:
        """Nothing: the verdict is read from the job's folder."""

    def reported(self, report: object) -> None:
        """Nothing, likewise."""


def _import_build() -> None:
    import engine_build.build  # noqa: F401


def _import_verify() -> None:
    import verify.page
    import verify.readings
    import verify.reference  # noqa: F401


_TASKS: dict[str, tuple[Callable[[], None], Callable[[dict[str, Any], Sender], None]]] = {
    "build": (_import_build, build_engine),
    "verify": (_import_verify, verify_job),
}


def main(*tasks: str) -> None:
    """Import PyTorch, and run each task in a process of its own.

    Args:
        tasks: ``NAME:READ:WRITE:LOG`` for each: its name, the descriptor of the pipe that brings the task, that of the
            pipe that takes its events, and the path of its log.
    """
    with uncollected():
        import sentence_transformers  # noqa: F401  and with it PyTorch and transformers
    running: dict[int, Sender] = {}
    for task in tasks:
        what, reading, writing, log = task.split(":", 3)
        if is_cancelled(int(reading)):
            continue
        if not (pid := os.fork()):
            die_with_parent()
            _become(what, int(reading), Sender(int(writing)), log)
            leave(0)
        running[pid] = Sender(int(writing))
    while running:
        pid, status = os.wait()
        if code := os.waitstatus_to_exitcode(status):
            with contextlib.suppress(BrokenPipeError):  # nobody listens: it has told its error
                running[pid].send(died=code)
        del running[pid]
    leave(0)


def is_cancelled(reading: int) -> bool:
    """Whether a pipe brings no task: its other end is closed, and nothing is in it.

    Args:
        reading: its descriptor.
    """
    pipe = select.poll()
    pipe.register(reading, select.POLLIN)
    return pipe.poll(0) == [(reading, select.POLLHUP)]


def _become(what: str, reading: int, sender: Sender, log: str) -> None:
    """Run a task in this process: import what it needs, which may be before the task comes, then read it and do it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    prepare, do = _TASKS[what]
    with uncollected():
        from contract.settings import put  # here: it is not imported before PyTorch is

        prepare()
    with open(reading) as tasks:
        line = tasks.readline()
    if not line:
        return  # the task was cancelled
    engines, request = json.loads(line)
    put(engines=engines)  # where they are was settled after this process was started
    try:
        do(request, sender)
    except UserError as error:
        sender.error(error.found, error.expected, error.hint)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
