"""ONNX to a serialized plan, by TensorRT's builder and parser."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from contract.errors import UserError
from contract.plan import ATTENTION_PLUGIN
from engine_build.profiles import PlanOptions, TensorProfile
from worker.runtime.trt import LOG, RTX, VERSION, trt

Step = Callable[[str, int, int], None]
"""Takes what the builder is at, how many of its steps are done, and how many there are."""


def plan_from_onnx(
    onnx: Path, profiles: Sequence[TensorProfile], options: PlanOptions, *, sm: int, cache: Path, step: Step
) -> memoryview:
    """Build a plan: TensorRT does on the current CUDA context, for its GPU, and TensorRT-RTX on the CPU.

    Precision is in the ONNX file's types. They bind where the network is strongly typed, which is always so from
    TensorRT 11 on and by a flag in 10; 8.6 must be allowed FP16 besides.

    Args:
        onnx: the file.
        profiles: at least one.
        options: ``level`` and ``workspace`` count.
        sm: compute capability of the GPUs that will run it, 86 for 8.6.
        cache: file of the timing cache, with which another build is faster; made if it is not there. TensorRT-RTX,
            which times nothing, has none.
        step: takes the progress.

    Raises:
        UserError: TensorRT does not build for these GPUs, does not parse the file, or does not build.
    """
    builder = trt.Builder(LOG)
    config = _config(builder, options)
    if RTX:
        _set_target(config, sm)
    else:
        _use_cache(config, cache)
    _add_profiles(builder, config, profiles)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(step)
    network = _empty_network(builder)
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse_from_file(str(onnx)):
        reasons = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise UserError(f"TensorRT {VERSION} cannot read {onnx} ({reasons})")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"TensorRT {VERSION} built no plan of {onnx} ({LOG.last()})")
    if not RTX:
        write_whole(cache, config.get_timing_cache().serialize())
    return memoryview(plan)


def _config(builder: "trt.Builder", options: PlanOptions) -> "trt.IBuilderConfig":
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.builder_optimization_level = options.level
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        config.set_flag(trt.BuilderFlag.FP16)
    _leave_out_libraries(config)
    return config


def _empty_network(builder: "trt.Builder") -> "trt.INetworkDefinition":
    flags = trt.NetworkDefinitionCreationFlag
    flag = flags.STRONGLY_TYPED if hasattr(flags, "STRONGLY_TYPED") else flags.EXPLICIT_BATCH
    return builder.create_network(1 << int(flag))


def _set_target(config: "trt.IBuilderConfig", sm: int) -> None:
    known = [int(name[2:]) for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    if sm not in known:
        raise UserError(
            f"TensorRT {VERSION} builds no plan for the compute capability {_dotted(sm)}",
            f"it supports {', '.join(map(_dotted, known))}",
            "use TensorRT on that GPU: pip install 'embedmill[gpu]'",
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)


def _dotted(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"


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


def write_whole(path: Path, content: memoryview) -> None:
    """Whole or not at all. Unlike ``contract.files.write_atomically`` it takes a plan without a copy."""
    staging = path.with_name(f"{path.name}.part")
    staging.write_bytes(content)
    staging.replace(path)
