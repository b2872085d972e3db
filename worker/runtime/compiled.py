"""What was compiled for an engine and a kind of GPU, as one file keeps it."""

import io
import logging
import zipfile
from typing import NamedTuple, Self

import torch

from contract.engine import EngineSpec
from contract.tuned import CompiledSpec
from worker.runtime.cuda import compute_capability
from worker.runtime.flash import kept_kernels, lacking, restore_kernels

log = logging.getLogger("embedmill.worker")

_GRAPHS, _KERNELS = "torch.bin", "flash_attention_4/"


class Compiled(NamedTuple):
    """Compiled graphs and kernels."""

    graphs: bytes
    """What ``torch.compiler.save_cache_artifacts`` gave."""
    kernels: dict[str, bytes]
    """Of FlashAttention 4, by path; empty if it is not installed."""

    @classmethod
    def of_this_process(cls) -> Self | None:
        """All that this process compiled; None if PyTorch gives nothing."""
        artifacts = torch.compiler.save_cache_artifacts()
        return None if artifacts is None else cls(artifacts[0], kept_kernels())

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The inverse of ``to_bytes``.

        Raises:
            zipfile.BadZipFile: it is no such file.
        """
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            names = [name for name in file.namelist() if name.startswith(_KERNELS)]
            return cls(file.read(_GRAPHS), {name.removeprefix(_KERNELS): file.read(name) for name in names})

    def to_bytes(self) -> bytes:
        """A zip archive, not compressed."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr(_GRAPHS, self.graphs)
            for name, content in self.kernels.items():
                file.writestr(_KERNELS + name, content)
        return buffer.getvalue()

    def restore(self) -> None:
        """Have this process load all of it instead of compiling."""
        torch.compiler.load_cache_artifacts(self.graphs)
        restore_kernels(self.kernels)


def restored(spec: EngineSpec, device: torch.device) -> CompiledSpec | None:
    """Have PyTorch load what is kept of an engine for this GPU, or say in the log why it cannot.

    Returns:
        What is loaded.

    Raises:
        UserError: the file is missing or was changed.
    """
    compiled = spec.compiled_for(torch.__version__, compute_capability(device))
    why_not = "was not compiled for this GPU and PyTorch"
    if compiled and (lacks := " and ".join(filter(None, map(lacking, sorted({*compiled.attention_kernels.values()}))))):
        compiled, why_not = None, f"was compiled with FlashAttention, and this machine has {lacks}"
    if compiled:
        Compiled.from_bytes(spec.check_compiled(compiled).read_bytes()).restore()
        return compiled
    log.warning(
        "engine %s %s: compiling takes a minute now, and each time a worker starts; keep what is compiled: python -m "
        "engine_build compile --engine %s",
        *(spec.name, why_not, spec.name),
    )
    return None
