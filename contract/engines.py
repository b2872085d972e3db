"""The engines on this machine: finding one, also the one that a job was begun with, and adding to its ``engine.json``
what was made for a kind of GPU."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from contract.engine import EngineSpec, engine_folder
from contract.errors import UserError, first_fault
from contract.job import Job
from contract.plan import PlanSpec
from contract.settings import settings
from contract.tuned import CompiledSpec, Measurement

_THAT_ENGINE = "point EMBEDMILL_ENGINES to the folder that holds that engine, or run the producer again for a new job"


def load_engine(name: str | None = None) -> EngineSpec:
    """The engine of this name; without one, ``EMBEDMILL_ENGINE``, or else the engine that was built last.

    Raises:
        UserError: there is no such engine, or its ``engine.json`` cannot be read.
    """
    name = name or settings().engine
    if name:
        return _read(engine_folder(name))
    found = [_read(file.parent) for file in settings().engines.glob("*/engine.json")]
    if not found:
        raise UserError(
            f"no engine in {settings().engines.absolute()}",
            "an engine must be built before anything can be embedded",
            "build one: python -m engine_build --model bert-base-cased",
        )
    return max(found, key=lambda spec: spec.created)


def engine_of(job: Job, hint: str = _THAT_ENGINE) -> EngineSpec:
    """The engine that a job was begun with.

    Args:
        job: the job.
        hint: what to do where another engine has its name by now.

    Raises:
        UserError: it is gone, or is another one by now.
    """
    spec = load_engine(job.engine)
    if spec.fingerprint != job.fingerprint:
        raise UserError(
            f"engine {spec.name} has fingerprint {spec.fingerprint}",
            f"job {job.id} was made with fingerprint {job.fingerprint}",
            hint,
        )
    return spec


def record_plan(spec: EngineSpec, plan: PlanSpec) -> EngineSpec:
    """Add a plan to an engine's ``engine.json``. One for the same TensorRT and compute capability is replaced, and its
    file removed.

    Returns:
        What ``engine.json`` says now.
    """
    return _record(spec, "plans", plan, lambda other: (other.tensorrt, other.sm) == (plan.tensorrt, plan.sm))


def record_compiled(spec: EngineSpec, compiled: CompiledSpec) -> EngineSpec:
    """Add compiled graphs, as ``record_plan`` does a plan; they replace those of the same PyTorch and compute
    capability."""
    return _record(spec, "compiled", compiled, lambda other: (other.torch, other.sm) == (compiled.torch, compiled.sm))


def record_measurement(spec: EngineSpec, measured: Measurement) -> EngineSpec:
    """Add a measurement, as ``record_plan`` does a plan; it replaces one of the same GPU and runtime."""
    return _record(
        spec, "measured", measured, lambda other: (other.gpu, other.runtime) == (measured.gpu, measured.runtime)
    )


def _record(spec: EngineSpec, field: str, record: BaseModel, replaces: Callable[[Any], bool]) -> EngineSpec:
    """Add a record to a list of ``engine.json``. It replaces those that ``replaces`` names, whose files are removed,
    and those that this version cannot use, whose files stay."""
    folder = os.open(spec.folder, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two GPUs' builds may end at once
        now = _read(spec.folder)
        others: tuple[BaseModel, ...] = getattr(now, field)
        replaced = [other for other in others if replaces(other)]
        kept = [other for other in others if other not in replaced]
        now = now.with_entries(field, (*kept, record))
        now.write()
        old = {getattr(other, "file", None) for other in replaced} - {getattr(record, "file", None)}
        for file in filter(None, old):
            (spec.folder / file).unlink(missing_ok=True)
    finally:
        os.close(folder)
    return now


def _read(folder: Path) -> EngineSpec:
    file = folder / "engine.json"
    try:
        return EngineSpec.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        built = sorted(path.parent.name for path in settings().engines.glob("*/engine.json"))
        raise UserError(
            f"no engine {folder.name} in {settings().engines.absolute()}",
            f"there: {', '.join(built) or 'none'}",
            f"build it: python -m engine_build --model MODEL --name {folder.name}",
        ) from None
    except ValidationError as error:
        raise UserError(
            f"{file} is not an engine of this version ({first_fault(error)})",
            hint=f"build it again: rm -r {folder} && python -m engine_build --model MODEL --name {folder.name}",
        ) from None
