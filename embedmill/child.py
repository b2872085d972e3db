"""``python -m embedmill.child``: builds an engine, or verifies a job, for the process that started it.

PyTorch stays out of that one, and the verifier shares nothing with what made the engine. The child reads one line of
JSON, what to do, and writes ``embedmill.events`` into a pipe. What libraries print goes to its log.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from contract.entry import uncollected
from contract.errors import UserError
from embedmill.events import Event, Sender


def build_engine(request: dict[str, Any], sender: Sender) -> None:
    """Build an engine, and on a machine with a GPU its plan, as ``python -m engine_build`` does.

    Args:
        request: ``model``, and the fields of ``EngineOptions``.
        sender: takes what happens.
    """
    with uncollected():
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
        sender: takes what happens.
    """
    from contract.jobs import find_job
    from verify.command import ALL, run

    verdict = run(find_job(request["job"]), request["sample"] or ALL, request["seed"], _Sent(sender))
    sender.send(result=verdict.passed)


class _Sent:
    """Sends what the verifier does."""

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
        """The verdict is in the job's folder, where whoever shows it reads it."""

    def reported(self, report: object) -> None:
        """Likewise."""


def main(what: str, descriptor: int) -> None:
    """Import what the task needs, read the task, do it."""
    sender = Sender(descriptor)
    try:
        if what == "verify":
            with uncollected():
                import verify.page
                import verify.readings
                import verify.reference  # noqa: F401  PyTorch's import takes seconds: it goes on beside the job's end
        line = sys.stdin.readline()
        if line:  # else there is nothing to do any more
            {"build": build_engine, "verify": verify_job}[what](json.loads(line), sender)
    except UserError as error:
        sender.error(error.found, error.expected, error.hint)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
