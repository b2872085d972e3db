"""ONNX to a TensorRT plan, on the GPU that will run it. PyTorch need not be installed.

Whatever differs between TensorRT 8.6, 10 and 11 is asked of the library, never decided by its version number.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pycuda.driver as cuda
import tensorrt as trt

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.plan import ATTENTION_PLUGIN, PackedProfile, PaddedProfile, PlanSpec
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
from worker.runtime.gpu_plan import LOG, Gpu, gpu_context

Step = Callable[[str, int, int], None]
"""Takes what the builder is at, how many of its steps are done, and how many there are."""


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
        UserError: there is no such GPU, the ONNX file is not the recorded one, or the builder fails.
    """
    packed = _is_packed(spec, options)
    sha256 = spec.onnx_packed_sha256 if packed and spec.onnx_packed_sha256 else spec.onnx_fp16_sha256
    onnx = spec.check_file("model.packed.onnx" if packed else "model.fp16.onnx", sha256)
    with gpu_context(gpu) as current:
        profiles = _profiles(spec, options, current, packed=packed)
        folder = spec.folder / "plans"
        folder.mkdir(exist_ok=True)
        name = f"trt{trt.__version__}-sm{current.sm}"
        began = time.monotonic()
        plan = plan_from_onnx(onnx, profiles.shapes, options, cache=folder / f"{name}.cache", step=step)
        seconds = time.monotonic() - began
        # A plan's name has its hash, so that the one that it replaces is whole until engine.json names this one.
        digest = hashlib.sha256(plan).hexdigest()
        path = folder / f"{name}-{digest[:8]}.plan"
        _write(path, plan)
        record = PlanSpec(
            file=str(path.relative_to(spec.folder)),
            sha256=digest,
            onnx_sha256=sha256,
            tensorrt=trt.__version__,
            sm=current.sm,
            gpu=current.device.name(),
            precision="fp16",
            padded_profiles=profiles.padded,
            packed_profiles=profiles.packed,
            optimization_level=options.level,
            build_seconds=round(seconds, 1),
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
        )
    return spec.with_plan(record)


def _is_packed(spec: EngineSpec, options: PlanOptions) -> bool:
    can_pack = spec.onnx_packed_sha256 is not None and has_attention_plugin()
    if options.packed and not can_pack:
        raise UserError(
            f"rows of engine {spec.name} cannot be packed by TensorRT {trt.__version__}",
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


def _profiles(spec: EngineSpec, options: PlanOptions, gpu: Gpu, *, packed: bool) -> _Profiles:
    if packed:
        multiprocessors = gpu.device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT)
        packed_ones = options.packed_profiles or packed_profiles(multiprocessors)
        check_packed(packed_ones, spec.max_length)
        return _Profiles([packed_shapes(one, spec.max_length, spec.pooling) for one in packed_ones], packed=packed_ones)
    padded_ones = options.padded_profiles or padded_profiles(spec.max_length)
    check_padded(padded_ones, spec.max_length)
    return _Profiles([padded_shapes(one) for one in padded_ones], padded=padded_ones)


def plan_from_onnx(
    onnx: Path, profiles: Sequence[TensorProfile], options: PlanOptions, *, cache: Path, step: Step
) -> memoryview:
    """Build a plan on the current CUDA context.

    Precision is in the ONNX file's types. They bind where the network is strongly typed, which is always so from
    TensorRT 11 on and by a flag in 10; 8.6 must be allowed FP16 besides.

    Args:
        onnx: the file.
        profiles: at least one.
        options: ``level`` and ``workspace`` count.
        cache: file of the timing cache, with which another build is faster; made if it is not there.
        step: takes the progress.

    Raises:
        UserError: TensorRT does not parse the file, or does not build.
    """
    builder = trt.Builder(LOG)
    flags = trt.NetworkDefinitionCreationFlag
    strongly_typed = getattr(flags, "STRONGLY_TYPED", None)
    flag = strongly_typed if strongly_typed is not None else flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse_from_file(str(onnx)):
        reasons = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise UserError(f"TensorRT {trt.__version__} cannot read {onnx} ({reasons})")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.builder_optimization_level = options.level
    if strongly_typed is None:
        config.set_flag(trt.BuilderFlag.FP16)
    _leave_out_libraries(config)
    _add_profiles(builder, config, profiles)
    _use_cache(config, cache)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(step)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"TensorRT {trt.__version__} built no plan of {onnx} ({LOG.last()})")
    _write(cache, config.get_timing_cache().serialize())
    return memoryview(plan)


def _leave_out_libraries(config: "trt.IBuilderConfig") -> None:
    """Later versions leave these out by default. They were no faster, and the plan needs none of them."""
    external = [getattr(trt.TacticSource, name, None) for name in ("CUBLAS", "CUBLAS_LT", "CUDNN")]
    sources = config.get_tactic_sources()
    for source in (source for source in external if source is not None):
        sources &= ~(1 << int(source))
    config.set_tactic_sources(sources)


def _add_profiles(builder: "trt.Builder", config: "trt.IBuilderConfig", profiles: Sequence[TensorProfile]) -> None:
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, shape in profile.items():
            shapes.set_shape(name, shape.min, shape.opt, shape.max)
        if config.add_optimization_profile(shapes) < 0:
            raise UserError(f"TensorRT does not take the profile {profile} ({LOG.last()})")


def _use_cache(config: "trt.IBuilderConfig", file: Path) -> None:
    """Build with what an earlier build timed. TensorRT refuses what another TensorRT or GPU left; a build without is
    only slower."""
    known = file.read_bytes() if file.exists() else b""
    if not (known and config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _write(path: Path, content: memoryview) -> None:
    """Whole or not at all. Unlike ``contract.files.write_atomically`` it takes a plan without a copy."""
    staging = path.with_name(f"{path.name}.part")
    staging.write_bytes(content)
    staging.replace(path)


def has_attention_plugin() -> bool:
    """Whether this TensorRT has the attention that knows where rows end."""
    trt.init_libnvinfer_plugins(LOG, "")
    # Those of plug-ins of the older kind, as this one is: TensorRT 11 has none.
    creators = getattr(trt.get_plugin_registry(), "plugin_creator_list", ())
    return any((creator.name, creator.plugin_version) == ATTENTION_PLUGIN for creator in creators)


def _monitor(step: Step) -> "trt.IProgressMonitor":
    """Reports the outermost phase to ``step``. TensorRT 8.6 has no such thing, and the class cannot be named there."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                step(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, number: int) -> bool:
            if phase_name in self.steps:
                step(phase_name, number + 1, self.steps[phase_name])
            return True

    return Monitor()
