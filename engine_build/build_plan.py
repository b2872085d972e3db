"""ONNX to a TensorRT plan: on the GPU that will run it, or ahead by TensorRT-RTX. PyTorch need not be installed."""

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from contract.engine import EngineSpec
from contract.engines import record_plan
from contract.errors import UserError
from contract.plan import PackedProfile, PaddedProfile, PlanSpec
from engine_build.onnx_to_plan import Step, has_attention_plugin, plan_from_onnx, write_whole
from engine_build.profiles import (
    PlanOptions,
    TensorProfile,
    check_packed,
    check_padded,
    packed_profiles,
    packed_shapes,
    padded_profiles,
    padded_shapes,
)
from worker.runtime.trt import RTX, VERSION, trt


class Target(NamedTuple):
    """What a plan is built for."""

    sm: int
    """Compute capability, 90 for 9.0."""
    gpu: str | None = None
    """The name of the GPU to build on; None to build ahead."""
    multiprocessors: int = 0
    """That GPU's."""


def add_plan(spec: EngineSpec, options: PlanOptions, *, gpu: int, step: Step) -> EngineSpec:
    """Build a plan for this machine's TensorRT and GPU, and record it in the engine's ``engine.json``.

    The plan is written before it is recorded; one for the same TensorRT and compute capability is replaced.

    Args:
        spec: the engine.
        options: what the user asks for.
        gpu: the number of the GPU to build on and for.
        step: takes the progress.

    Returns:
        The engine with its plan.

    Raises:
        UserError: there is no such GPU, TensorRT-RTX does not support it, the ONNX file is not the recorded one, or the
            builder fails.
    """
    from worker.runtime.gpu_plan import gpu_context  # here: a build ahead needs nothing of a GPU

    with gpu_context(gpu) as current:
        target = Target(current.sm, current.device.name(), current.multiprocessors)
        return _add(spec, options, target, step)


def add_plan_ahead(spec: EngineSpec, options: PlanOptions, *, sm: int, step: Step) -> EngineSpec:
    """Build a plan for GPUs of a compute capability, on a machine that needs none. Only TensorRT-RTX can.

    Args:
        spec: the engine.
        options: what the user asks for.
        sm: the compute capability, 86 for 8.6.
        step: takes the progress.

    Returns:
        The engine with its plan.

    Raises:
        UserError: this is not TensorRT-RTX, it does not support these GPUs, the ONNX file is not the recorded one, or
            the builder fails.
    """
    if not RTX:
        raise UserError(
            f"TensorRT {VERSION} builds a plan only on the GPU that will run it",
            "expected TensorRT-RTX, which --compute-capability builds with",
            "leave out --compute-capability, or install embedmill[rtx] in a Python without the package tensorrt",
        )
    return _add(spec, options, Target(sm), step)


def _add(spec: EngineSpec, options: PlanOptions, target: Target, step: Step) -> EngineSpec:
    packed = _is_packed(spec, options)
    sha256 = _sha256_of_onnx(spec, packed=packed)
    onnx = spec.check_file("model.packed.onnx" if packed else "model.fp16.onnx", sha256)
    profiles = _profiles(spec, options, target, packed=packed)
    folder = spec.folder / "plans"
    folder.mkdir(exist_ok=True)
    name = f"trt{VERSION.replace('RTX ', '-rtx')}-sm{target.sm}"
    began = time.monotonic()
    cache = folder / f"{name}.cache"
    plan = plan_from_onnx(onnx, profiles.shapes, options, sm=target.sm, cache=cache, step=step)
    seconds = time.monotonic() - began
    # A plan's name has its hash, so that the one that it replaces is whole until engine.json names this one.
    digest = hashlib.sha256(plan).hexdigest()
    path = folder / f"{name}-{digest[:8]}.plan"
    write_whole(path, plan)
    record = PlanSpec(
        file=str(path.relative_to(spec.folder)),
        sha256=digest,
        onnx_sha256=sha256,
        tensorrt=VERSION,
        sm=target.sm,
        gpu=target.gpu,
        precision="fp16",
        padded_profiles=profiles.padded,
        packed_profiles=profiles.packed,
        optimization_level=options.level,
        build_seconds=round(seconds, 1),
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
    )
    return record_plan(spec, record)


def _sha256_of_onnx(spec: EngineSpec, *, packed: bool) -> str:
    """The recorded hash of the file that a plan is built of."""
    if sha256 := (packed and spec.onnx_packed_sha256) or spec.onnx_fp16_sha256:
        return sha256
    if spec.onnx_sha256:
        raise UserError(
            f"engine {spec.name} was built for CPUs alone",
            "a plan is built of model.fp16.onnx",
            f"build another here: python -m engine_build --model {spec.model} --name NAME",
        )
    raise UserError(
        f"TensorRT cannot compute engine {spec.name}",
        f"a plan is built of an ONNX file; {spec.lacks('onnx')}",
        "a GPU computes it with PyTorch: pip install 'embedmill[torch]'",
    )


def _is_packed(spec: EngineSpec, options: PlanOptions) -> bool:
    can_pack = spec.onnx_packed_sha256 is not None and has_attention_plugin()
    if options.packed and not can_pack:
        raise UserError(
            f"rows of engine {spec.name} cannot be packed by TensorRT {VERSION}",
            "that takes attention heads 64 wide, rows of at most 512 tokens, and TensorRT's attention plug-in",
            "leave out --packed",
        )
    if options.packed is not None:
        return options.packed
    # 8.6's own attention is slow with a mask. That of later versions, all of which know strong typing, is fused.
    return not options.padded_profiles and can_pack and not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


@dataclass(frozen=True)
class _Profiles:
    """The profiles of one kind, and the shapes of their tensors."""

    shapes: list[TensorProfile]
    padded: tuple[PaddedProfile, ...] = ()
    packed: tuple[PackedProfile, ...] = ()


def _profiles(spec: EngineSpec, options: PlanOptions, target: Target, *, packed: bool) -> _Profiles:
    if packed:
        packed_ones = options.packed_profiles or packed_profiles(target.multiprocessors)
        check_packed(packed_ones, spec.max_length)
        return _Profiles([packed_shapes(one, spec.max_length, spec.pooling) for one in packed_ones], packed=packed_ones)
    padded_ones = options.padded_profiles or padded_profiles(spec.max_length)
    check_padded(padded_ones, spec.max_length)
    return _Profiles([padded_shapes(one) for one in padded_ones], padded=padded_ones)
