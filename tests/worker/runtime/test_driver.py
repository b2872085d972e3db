"""CUDA's driver by either package, on a machine without a GPU: ``libcuda.c`` is the driver.

Each test is a process of its own: a process has one driver.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.runtime.drivers import PACKAGES, only
from worker.runtime.gpus import missing

HERE = Path(__file__).parent
Process = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the driver's library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("libcuda")
    files = ["-o", str(folder / "libcuda.so.1"), str(HERE / "libcuda.c")]
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *files, "-ldl"], check=True)
    return folder


@pytest.fixture(params=PACKAGES)
def run(request: pytest.FixtureRequest) -> Callable[..., Process]:
    """Runs a program, by one of the packages, with the library in a folder."""
    if lacks := missing(request.param):
        pytest.skip(lacks)

    def run(program: str, libcuda: Path | None) -> Process:
        environ = os.environ | ({"LD_LIBRARY_PATH": str(libcuda)} if libcuda else {"CUDA_VISIBLE_DEVICES": "-1"})
        return subprocess.run(
            [sys.executable, "-c", only(request.param) + program],
            capture_output=True,
            text=True,
            cwd=HERE.parents[2],
            env=environ,
        )

    return run


CALLS = """
import ctypes, numpy as np
from worker.runtime.driver import cuda_driver
cuda = cuda_driver()
cuda.init()
device = cuda.Device(0)
assert (device.name(), device.pci_bus_id(), device.compute_capability()) == ("No GPU", "0000:1B:00.0", (9, 0))
assert device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT) == 132
context = device.retain_primary_context()
context.push()
free, total = cuda.mem_get_info()
assert free == total == 64 << 20
stream, events = cuda.Stream(), [cuda.Event(), cuda.Event()]
sent, received = (cuda.pagelocked_empty((40, 3), np.float32) for _ in range(2))
sent[:] = np.arange(120).reshape(40, 3)
received[:] = -1
memory = cuda.mem_alloc(sent.nbytes)
events[0].record(stream)
cuda.memcpy_htod_async(memory, sent, stream)
cuda.memcpy_dtoh_async(received[:30], int(memory), stream)
events[1].record(stream)
stream.wait_for_event(events[1])
events[1].synchronize()
stream.synchronize()
assert (received[:30] == sent[:30]).all() and (received[30:] == -1).all()
assert 0 <= events[1].time_since(events[0]) < 60_000
assert stream.handle
for size in (1 << 30, 64 << 20):
    try:
        cuda.mem_alloc(size)
    except cuda.MemoryError as error:
        assert isinstance(error, cuda.Error) and "out of memory" in str(error)
    else:
        raise AssertionError(size)
sent.base.free()
received.base.free()
memory.free()
del memory, events
cuda.mem_alloc(100)
assert cuda.mem_get_info() == (total, total)
stream = None
print("left:", ctypes.CDLL("libcuda.so.1").embedmill_alive())
context.pop()
"""


def test_each_call_does_what_the_plan_takes_it_for(run: Callable[..., Process], libcuda: Path) -> None:
    done = run(CALLS, libcuda)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left: 0\n", "")


ENGINE = """
import ctypes, numpy as np
from contract.batch import Batch
from contract.errors import UserError
from contract.graph import OUTPUT
from contract.plan import PackedProfile
from contract.tokens import TokenRows
from tests.contract.samples import engine_spec
from worker.runtime.gpu_lock import gpu_lock
from worker.runtime.gpu_plan import gpu_context
from worker.runtime.interface import EngineDead
from worker.runtime.layout import Packed
from worker.runtime.tensorrt import TensorRTEngine, _Pipeline

spec = engine_spec(hidden=2, max_length=12, pooling="cls")

class Plan:
    '''What TensorRT would do: here each row's first token and last.'''

    layout = Packed(spec, [PackedProfile(8, 60), PackedProfile(3, 13)])

    def __init__(self, cuda):
        self.stream = cuda.Stream()

    def enqueue(self, profile, shapes, addresses):
        def on_gpu(name, size, kind):
            return np.ctypeslib.as_array((kind * size).from_address(int(addresses[name])))
        ids, ends = (on_gpu(name, shapes[name][0], ctypes.c_int32) for name in ("input_ids", "cu_seqlens"))
        vectors = on_gpu(OUTPUT, 2 * (len(ends) - 1), ctypes.c_float).reshape(-1, 2)
        vectors[:, 0], vectors[:, 1] = ids[ends[:-1] % len(ids)], ids[ends[1:] - 1]

lengths = np.random.default_rng(1).integers(1, 13, 50).astype(np.int32)
ids = np.arange(lengths.sum(), dtype=np.int32)
batch = Batch("job", 0, "", np.arange(50), TokenRows(ids, lengths), lengths)
with gpu_context(0) as gpu, gpu_lock(gpu.device.pci_bus_id()) as lock:
    plan = Plan(gpu.cuda)
    pipeline = _Pipeline(plan, spec.hidden, gpu.cuda)
    engine = TensorRTEngine(spec, gpu, plan.layout, pipeline, lock)
    starts = np.cumsum(lengths) - lengths
    expected = np.stack([starts, starts + lengths - 1], 1)
    assert (engine.infer(batch).vectors == expected).all()
    pipeline.close()
    del plan.stream
    print("left:", ctypes.CDLL("libcuda.so.1").embedmill_alive())
try:
    with gpu_context(1):
        pass
except UserError as error:
    print(error)
try:
    with gpu_context(0) as gpu, gpu_lock(gpu.device.pci_bus_id()) as lock:
        pipeline = _Pipeline(plan := Plan(gpu.cuda), spec.hidden, gpu.cuda)
        pipeline.slots[1].device["input_ids"] = 0xBAD
        try:
            TensorRTEngine(spec, gpu, plan.layout, pipeline, lock).infer(batch)
        finally:
            pipeline.close()
except EngineDead as error:
    print("dead:", error)
"""


def test_micro_batches_pass_the_pipeline_and_errors_are_told(run: Callable[..., Process], libcuda: Path) -> None:
    """A GPU that fails fails in all that is done after it too: the first error is what is told."""
    pytest.importorskip("tensorrt_rtx")
    done = run(ENGINE, libcuda)
    assert done.returncode == 0, done.stderr
    left, no_gpu, dead = done.stdout.splitlines()
    assert left == "left: 0"
    assert no_gpu.startswith("GPU 1 cannot be used (cuDeviceGet failed: invalid device ordinal)")
    assert re.fullmatch(r"dead: GPU 0 failed: \w+ failed: an illegal memory access was encountered", dead)


NO_DRIVER = """
from contract.errors import UserError
from worker.runtime.gpu_plan import gpu_context
try:
    with gpu_context(0):
        print("used")
except UserError as error:
    print(error)
"""


def test_a_machine_without_a_driver_is_told_in_one_line(run: Callable[..., Process], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = run(NO_DRIVER, None)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(("GPU 0 cannot be used (cuInit failed: ", "CUDA cannot be used (libcuda.so.1: "))
    assert "see nvidia-smi" in line


UNTOUCHED = """
import ctypes
from worker.runtime.gpus import cuda_untouched
print(cuda_untouched())
ctypes.CDLL("libcuda.so.1").cuInit(0)
print(cuda_untouched())
"""


def test_a_process_that_has_used_cuda_is_told_from_one_that_has_not(libcuda: Path) -> None:
    environ = os.environ | {"LD_LIBRARY_PATH": str(libcuda)}
    command = [sys.executable, "-c", UNTOUCHED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[2], env=environ)
    assert done.stdout.split() == ["True", "False"], done.stderr
