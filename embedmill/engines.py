"""The engines that ``embedmill embed`` builds as they are needed: named so that another model, revision or option is
another engine, and kept for every later run."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contract.engine import engine_folder
from embedmill.children import Child
from embedmill.events import Event
from engine_build.source import local_folder
from worker.runtime.gpus import gpu_count


@dataclass(frozen=True)
class EngineRequest:
    """A model, and what is asked of its engine; None for the model's own."""

    model: str
    """Hub id or local folder."""
    revision: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    max_length: int | str | None = None
    gpu: bool = field(default_factory=lambda: gpu_count() > 0)
    """Whether this machine has a GPU to compute with: for a CPU alone less is made, and a machine that gets a GPU has
    another engine built."""

    @property
    def name(self) -> str:
        """The engine's name: the model's, and a hash over what is asked for.

        A folder counts as another model once a file in it has another size or time. A model of the Hub without a
        revision is the one that it was when its engine was built.
        """
        folder = Path(os.path.expanduser(self.model))
        asked = asdict(self) | ({"model": str(folder.resolve()), "files": _files(folder)} if folder.is_dir() else {})
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        last = folder.resolve().name if folder.is_dir() else self.model.rsplit("/", 1)[-1]
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', last).strip('.-') or 'engine'}-{digest[:10]}"

    def is_built(self) -> bool:
        return (engine_folder(self.name) / "engine.json").is_file()


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Every file's path in the folder, size and time."""
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in folder.rglob("*") if path.is_file())
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def check(request: EngineRequest) -> None:
    """See that a folder is a model, without PyTorch.

    Raises:
        UserError: it is none.
    """
    local_folder(request.model)


def build(
    request: EngineRequest,
    builder: Child,
    show: Callable[[Event], None],
    note: Callable[[str], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Build an engine.

    Args:
        request: what is asked for.
        builder: has it done.
        show: takes the steps.
        note: takes lines that the user should read.
        meanwhile: called while it is done.

    Raises:
        UserError: the model cannot be taken, or the process died.
    """
    show(Event("engine", "importing PyTorch"))
    builder.send(asdict(request) | {"name": request.name})
    meanwhile()
    builder.result(show, note)
