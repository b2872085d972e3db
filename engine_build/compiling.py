"""What PyTorch compiles for an engine on a GPU, kept in the engine directory."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from contract.engine import EngineSpec
from contract.engines import record_compiled
from contract.errors import UserError
from contract.files import write_atomically
from contract.tuned import AttentionKernel, CompiledSpec

if TYPE_CHECKING:
    import torch

_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Name the folders that PyTorch compiles into."""


def add_compiled(spec: EngineSpec, gpu: int) -> EngineSpec:
    """Compile an engine for this machine's PyTorch and GPU, and record it in the engine's ``engine.json``.

    Args:
        spec: the engine.
        gpu: the number of the GPU to compile on and for.

    Returns:
        The engine with what was compiled.

    Raises:
        UserError: there is no such GPU, or PyTorch gives nothing to keep.
    """
    with _empty_caches():
        import torch  # here: it reads the names of its caches' folders

        from worker.runtime.compiled import Compiled
        from worker.runtime.cuda import compute_capability, cuda_device

        device = cuda_device(gpu)
        kernels, attention, opened = (_packed if "torch" in spec.tiers else _modules)(spec, device)
        began = time.monotonic()
        with opened:
            seconds = time.monotonic() - began
            compiled = Compiled.of_this_process()
    if compiled is None:
        raise UserError(
            f"PyTorch {torch.__version__} gave nothing that can be kept",
            "expected that torch.compiler.save_cache_artifacts does",
            "unset TORCHINDUCTOR_FORCE_DISABLE_CACHES, and see python -c 'import torch; print(torch.__version__)'",
        )
    content, sm = compiled.to_bytes(), compute_capability(device)
    digest = hashlib.sha256(content).hexdigest()
    file = f"compiled/torch{torch.__version__}-sm{sm}-{digest[:8]}.bin"
    (spec.folder / "compiled").mkdir(exist_ok=True)
    write_atomically(spec.folder / file, content)
    return record_compiled(
        spec,
        CompiledSpec(
            file=file,
            sha256=digest,
            torch=torch.__version__,
            sm=sm,
            gpu=torch.cuda.get_device_name(gpu),
            attention_kernels=kernels,
            attention=attention,
            seconds=round(seconds, 1),
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
        ),
    )


_Opened = tuple[dict[str, AttentionKernel], str, AbstractContextManager[object]]
"""``CompiledSpec.attention_kernels`` and ``attention``, and the engine, which is compiled once it is entered."""


def _packed(spec: EngineSpec, device: "torch.device") -> _Opened:
    from worker.runtime.flash import fastest_kernels
    from worker.runtime.packed_model import attention_shape
    from worker.runtime.torch_gpu import profiles_on, torch_gpu_engine

    heads, width = attention_shape(spec.check_file("model.safetensors", spec.torch_sha256))
    kernels, attention = fastest_kernels(profiles_on(device, spec), heads, width, device)
    return kernels, attention, torch_gpu_engine(spec, device.index, kernels=kernels)


def _modules(spec: EngineSpec, device: "torch.device") -> _Opened:
    from worker.runtime.modules import modules_engine

    return {}, "the model's own modules have their own", modules_engine(spec, 1, device.index, anew=True)


@contextmanager
def _empty_caches() -> Iterator[None]:
    """In the ``with`` block PyTorch's caches are empty folders: what is kept is then all that was compiled."""
    before = {name: os.environ.get(name) for name in _CACHES}
    with tempfile.TemporaryDirectory(prefix="embedmill-compile-") as folder:
        os.environ |= {name: f"{folder}/{name}" for name in _CACHES}
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
