"""ONNX to a TensorRT plan, on the GPU that will run it. PyTorch need not be installed.

Whatever differs between TensorRT 8.6, 10 and 11 is asked of the library, never decided by its version number.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pycuda.driver as cuda
import tensorrt as trt

from contract.engine import (
    ATTENTION_PLUGIN,
    INPUTS,
    PACKED_INPUTS,
    EngineSpec,
    PlanSpec,
    Profile,
    packed_rows,
)
from contract.errors import UserError
from worker.tensorrt_engine import LOG, open_gpu

OPTIMIZATION_LEVELS = range(6)
_TOKENS = 16_384
"""Tokens of a profile's largest micro-batch: 32 rows of 512, with which an H200 is full."""
_LAST_TOKENS = 2_048
"""Of the packed profile for what is left at a batch's end."""
_PACKED_ROWS = 32
"""A packed profile has a row for as many tokens; shorter rows leave some of its tokens to padding."""
_LENGTHS = (64, 128, 256, 512)

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
Step = Callable[[str, int, int], None]
"""Takes what the builder is at, how many of its steps are done, and how many there are."""


def default_profiles(max_length: int, *, packed: bool) -> tuple[Profile, ...]:
    """Micro-batches of up to 16,384 tokens: packed, or a profile for each doubling of the length."""
    if packed:
        sizes = (max(_TOKENS, max_length), max(_LAST_TOKENS, max_length))
        return tuple(Profile(1, size // _PACKED_ROWS, 1, size) for size in sizes)
    lengths = [length for length in _LENGTHS if length < max_length] + [max_length]
    shortest = [1] + [length + 1 for length in lengths]
    return tuple(
        Profile(1, max(1, _TOKENS // length), least, length) for least, length in zip(shortest, lengths, strict=False)
    )


def add_plan(
    spec: EngineSpec,
    *,
    profiles: Sequence[Profile] | None,
    packed: bool | None,
    level: int,
    workspace: int,
    gpu: int,
    step: Step,
) -> EngineSpec:
    """Build a plan for this machine's TensorRT and GPU, and record it in the engine's ``engine.json``.

    The plan is written before it is recorded; one for the same TensorRT and compute capability is replaced.

    Args:
        spec: the engine.
        profiles: the shapes it takes; None for ``default_profiles``.
        packed: whether rows lie end to end; None for where the model and this TensorRT can.
        level: the builder's optimization level, 0 to 5. Higher builds take longer.
        workspace: most bytes of GPU memory that a tactic may use for itself.
        gpu: the GPU to build on and for.
        step: takes the progress.

    Returns:
        The engine with its plan.

    Raises:
        UserError: there is no such GPU, the ONNX file is not the recorded one, or the builder fails.
    """
    can_pack = spec.onnx_packed_sha256 is not None and has_attention_plugin()
    if packed and not can_pack:
        raise UserError(
            f"rows of engine {spec.name} cannot be packed by TensorRT {trt.__version__}",
            "that takes attention heads 64 wide, rows of at most 512 tokens, and TensorRT's attention plug-in",
            "leave out --packed",
        )
    packed = can_pack if packed is None else packed
    profiles = tuple(profiles or default_profiles(spec.max_length, packed=packed))
    if not packed and (too_long := [profile for profile in profiles if profile.length > spec.max_length]):
        raise UserError(
            f"profile {too_long[0]} is longer than a row can be", f"the engine takes {spec.max_length} tokens"
        )
    if max(profile.length for profile in profiles) < spec.max_length:
        raise UserError(
            f"no profile takes rows of {spec.max_length} tokens", f"given: {', '.join(map(str, profiles))}",
            f"add one, such as --profile 1-32x{spec.max_length}",
        )  # fmt: skip
    sha256 = spec.onnx_packed_sha256 if packed and spec.onnx_packed_sha256 else spec.onnx_fp16_sha256
    onnx = spec.check_file("model.packed.onnx" if packed else "model.fp16.onnx", sha256)
    with ExitStack() as stack:
        sm = open_gpu(gpu, stack)
        folder = spec.folder / "plans"
        folder.mkdir(exist_ok=True)
        name = f"trt{trt.__version__}-sm{sm}"
        shapes = [_packed_shapes(one, spec.max_length) if packed else _shapes(one) for one in profiles]
        began = time.monotonic()
        plan = plan_from_onnx(onnx, shapes, level=level, workspace=workspace, cache=folder / f"{name}.cache", step=step)
        seconds = time.monotonic() - began
        # A plan's name has its hash, so that the one that it replaces is whole until engine.json names this one.
        digest = hashlib.sha256(plan).hexdigest()
        path = folder / f"{name}-{digest[:8]}.plan"
        staging = path.with_suffix(".part")
        staging.write_bytes(plan)
        staging.replace(path)
        found = PlanSpec(
            file=str(path.relative_to(spec.folder)),
            sha256=digest,
            onnx_sha256=sha256,
            packed=packed,
            tensorrt=trt.__version__,
            sm=sm,
            gpu=cuda.Device(gpu).name(),
            precision="fp16",
            profiles=profiles,
            optimization_level=level,
            build_seconds=round(seconds, 1),
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
        )
    now = spec.with_plan(found)
    for old in folder.glob(f"{name}-*.plan"):
        if old != path:
            old.unlink()
    return now


def plan_from_onnx(
    onnx: Path, profiles: Sequence[Shapes], *, level: int, workspace: int, cache: Path, step: Step
) -> memoryview:
    """Build a plan on the current CUDA context.

    Precision is in the ONNX file's types. They bind where the network is strongly typed, which is always so from
    TensorRT 11 on and by a flag in 10; 8.6 must be allowed FP16 besides.

    Args:
        onnx: the file.
        profiles: at least one: each input's least and largest shape.
        level: 0 to 5.
        workspace: in bytes.
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
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.builder_optimization_level = level
    if strongly_typed is None:
        config.set_flag(trt.BuilderFlag.FP16)
    # Later versions leave these libraries out by default. They were no faster, and the plan needs neither.
    external = [getattr(trt.TacticSource, name, None) for name in ("CUBLAS", "CUBLAS_LT", "CUDNN")]
    sources = config.get_tactic_sources()
    for source in (source for source in external if source is not None):
        sources &= ~(1 << int(source))
    config.set_tactic_sources(sources)
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, (least, most) in profile.items():
            shapes.set_shape(name, least, most, most)
        if config.add_optimization_profile(shapes) < 0:
            raise UserError(f"TensorRT does not take the profile {profile} ({LOG.last()})")
    known = cache.read_bytes() if cache.exists() else b""
    # One that another TensorRT or GPU left is not taken; a build without one is only slower.
    if not (known and config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(step)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"TensorRT {trt.__version__} built no plan of {onnx} ({LOG.last()})")
    staging = cache.with_suffix(".cache.part")
    staging.write_bytes(config.get_timing_cache().serialize())
    staging.replace(cache)
    return memoryview(plan)


def _shapes(profile: Profile) -> Shapes:
    """Each input's least and largest shape."""
    return dict.fromkeys(INPUTS, ((profile.least_rows, profile.shortest), (profile.rows, profile.length)))


def _packed_shapes(profile: Profile, max_length: int) -> Shapes:
    """Likewise. All but the longest row's length is fixed: TensorRT 8.6's kernels for a range of shapes are slower."""
    tokens, ends = (profile.length,), (packed_rows(profile, max_length) + 1,)
    fixed = dict.fromkeys(PACKED_INPUTS[:4], (tokens, tokens)) | {"cu_seqlens": (ends, ends)}
    return fixed | {"longest": ((1,), (max_length,))}


def has_attention_plugin() -> bool:
    """Whether this TensorRT has the attention that knows where rows end."""
    trt.init_libnvinfer_plugins(LOG, "")
    creators = trt.get_plugin_registry().plugin_creator_list
    return any((creator.name, creator.plugin_version) == ATTENTION_PLUGIN for creator in creators)


def _monitor(step: Step) -> "trt.IProgressMonitor":
    """Tells ``step`` of the outermost phase. TensorRT 8.6 has no such thing, and the class cannot be named there."""

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
