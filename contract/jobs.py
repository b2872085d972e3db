"""Finding a job: by its folder, its id or its name, or the latest one."""

import contextlib
import re

from contract.errors import UserError
from contract.job import NAME, Job, load_job
from contract.settings import settings
from contract.store import Location, location


def latest_job() -> Job:
    """The job in the output folder whose ``job.json`` was written last.

    Raises:
        UserError: there is none.
    """
    output = settings().output
    folders = _folders(output)
    if not folders:
        raise UserError(
            f"no job in {output.absolute()}",
            "there must be embeddings before they can be verified",
            "run: python -m producer --dataset imdb",
        )
    return load_job(folders[-1])


def jobs_in(output: Location) -> list[Job]:
    """The jobs whose folders lie in this one, the one begun or resumed last at the end; no edited or damaged one."""
    return [job for folder in _folders(output) for job in _loaded(folder)]


def _folders(output: Location) -> list[Location]:
    """The folders in ``output`` that have a ``job.json``, the one written last at the end."""
    times: dict[Location, float] = {}
    for name in output.names():
        # Whatever else lies there, a folder that nobody may read or a key that is no path, is no job.
        with contextlib.suppress(PermissionError, ValueError):
            folder = output / name
            if (when := (folder / "job.json").modified()) is not None:
                times[folder] = when
    return sorted(times, key=lambda folder: times[folder])


def _called(name: str) -> Job | None:
    """The job in the output folder that ``--name`` calls so."""
    with contextlib.suppress(PermissionError):
        begun = [entry for entry in settings().output.names() if re.fullmatch(rf"{name}-[0-9a-f]{{10}}", entry)]
        found = [job for entry in begun for job in _loaded(settings().output / entry) if job.name == name]
        if len(found) > 1:
            raise UserError(
                f"{len(found)} jobs in {settings().output} have the name {name}",
                hint=f"give an id: {', '.join(job.id for job in found)}",
            )
        return found[0] if found else None
    return None


def _loaded(folder: Location) -> list[Job]:
    with contextlib.suppress(UserError):
        return [load_job(folder)]
    return []


def find_job(name: str | None) -> Job:
    """The job of this folder or URI, or of this id or ``--name`` in the output folder; without a name, the latest one.

    Raises:
        UserError: there is none, or several have this name.
    """
    if name is None:
        return latest_job()
    if re.fullmatch(NAME, name) and (called := _called(name)):
        return called
    try:
        given = location(name)
    except ValueError as error:
        raise UserError(f"no job in {name!r} ({error})") from None
    if given.local:
        with contextlib.suppress(PermissionError):
            below = settings().output / name
            if not (given / "job.json").exists() and (below / "job.json").exists():
                return load_job(below)
    return load_job(given)
