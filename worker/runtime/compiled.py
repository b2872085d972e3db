"""What was compiled for an engine and a kind of GPU, as one file keeps it."""

import io
import zipfile
from typing import NamedTuple, Self

import torch

from worker.runtime.flash import kept_kernels, restore_kernels

_GRAPHS, _KERNELS = "torch.bin", "flash_attention_4/"


class Compiled(NamedTuple):
    """Compiled graphs and kernels."""

    graphs: bytes
    """What ``torch.compiler.save_cache_artifacts`` gave."""
    kernels: dict[str, bytes]
    """Of FlashAttention 4, by path; empty if it is not used."""

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
