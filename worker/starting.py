"""What a ``celery worker`` checks and waits for before it starts anything."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable

import click
from celery.apps.worker import Worker
from celery.bin.worker import worker as command
from celery.concurrency import get_implementation

from contract.engine import EngineSpec
from contract.engines import load_engine
from contract.entry import uncollected
from contract.errors import UserError
from worker import logs, probe
from worker.heartbeat import HeartbeatSender
from worker.runtime.choose import Runtime, choose

log = logging.getLogger("embedmill.worker")

_POOLS = ("prefork", "solo")

_POLL_EVERY = 0.25
"""Seconds between two looks for an engine."""


def tell_concurrency(text: str) -> None:
    """Have ``celery worker --help`` say this of ``--concurrency``, whose default is not Celery's here."""
    for option in command.params:
        if isinstance(option, click.Option) and option.name == "concurrency":
            option.help = text


def set_up_log(worker: Worker, ignored: Iterable[str]) -> None:
    """Show the log's lines.

    Args:
        worker: the worker.
        ignored: a line for each variable that is ignored.
    """
    logs.begin(worker)
    logging.getLogger("embedmill").setLevel(logging.INFO)  # its lines are shown at Celery's own default level too
    for line in ignored:
        log.warning(line)


def refuse_pool(chosen: object) -> None:
    """Take only pools whose children are processes with engines of their own.

    Raises:
        UserError: it is another one.
    """
    pool = get_implementation(chosen or "prefork")
    if pool not in [get_implementation(name) for name in _POOLS]:
        name = pool.__module__.rpartition(".")[2]
        raise UserError(
            f"the pool {name} shares one process among batches",
            f"expected {' or '.join(_POOLS)}: each engine has a process, and one batch at a time, to itself",
            "leave out -P",
        )


def wait_for_engine(heartbeat: HeartbeatSender) -> None:
    """Wait until there is the default engine: what builds or copies it may still be at it.

    Raises:
        UserError: ``EMBEDMILL_RUNTIME`` asks for something that this machine has not.
        SystemExit: the engine's plan cannot be opened on this machine's GPU; its reason is printed.
    """
    logged = ""
    while True:
        try:
            spec = load_engine()
            break
        except UserError as error:
            if logged != error.message:
                logged = error.message
                log.warning("waits for its engine: %s", logged)
                heartbeat.set_state("starting", waits_for=f"its engine: {error.found}")
            time.sleep(_POLL_EVERY)
    runtime = choose(spec).runtime
    if runtime.uses_gpu:
        try_on_gpu(spec, runtime)


def try_on_gpu(spec: EngineSpec, runtime: Runtime) -> None:
    """See whether an engine can be opened on this machine's GPU, and import beside it what the children need: that is
    half of a child's start, also of one that replaces a killed one.

    This process may not touch CUDA, or its children could not. Another one, which then ends, tries the engine; and
    before that the imports, since they are whatever is installed.

    Raises:
        UserError: it cannot.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # whether there are GPUs, PyTorch then asks NVML
    command = [sys.executable, "-m", "worker.probe", spec.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tried:
        untouched = tried.stdout is not None and tried.stdout.readline().strip() == probe.UNTOUCHED
        if runtime.before_fork and untouched:
            with uncollected():
                runtime.load()
        tried.communicate()
    if tried.returncode:
        raise UserError(f"engine {spec.name} cannot be opened on this machine's GPU", hint="see the line above")
    if runtime.before_fork and not untouched:
        log.info("each child imports %s by itself: something that is imported with it uses CUDA", runtime.name)
