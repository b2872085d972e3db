"""The engine that runs anywhere: ONNX Runtime on a CPU, FP32."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import onnxruntime

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.graph import OUTPUT
from contract.settings import settings
from worker.runtime.interface import LONG_ROW, Done, Gathered, Inference, unseen
from worker.runtime.microbatch import MicroBatch, cut_by_budget

_SCORES = 1 << 22
"""Most rows × length × length of a micro-batch. Of each head's scores ONNX Runtime holds two copies in FP32: 32 MiB."""


@contextmanager
def onnx_engine(spec: EngineSpec, threads: int) -> Iterator["OnnxEngine"]:
    """Load ``model.onnx`` into ONNX Runtime while the ``with`` block lasts.

    Each thread computes micro-batches of its own. All threads on one micro-batch, ONNX Runtime's usual way, was 4 to
    20 % slower in three rounds on two cores that other processes used too, at 512 tokens, and at times half as fast at
    1,024: there every layer waits for the slowest thread.

    Args:
        spec: the engine directory.
        threads: micro-batches that are computed side by side, each on one core.

    Raises:
        UserError: ``model.onnx`` is missing or was changed.
    """
    session = session_of(spec.check_file("model.onnx", spec.onnx_sha256))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="onnx")
    try:
        yield OnnxEngine(spec, session, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX file's session on the CPU, with one thread for each run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxEngine:
    """A session and the threads that run it.

    Args:
        spec: the engine directory.
        session: of its ``model.onnx``.
        pool: its threads call the session side by side.
    """

    precision = "fp32"
    runtime = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, spec: EngineSpec, session: onnxruntime.InferenceSession, pool: ThreadPoolExecutor) -> None:
        self.spec, self._session, self._pool = spec, session, pool

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """See ``interface.Engine.infer``."""
        lengths = batch.lengths
        gathered = Gathered(self.spec, lengths, done)
        microbatches = cut_by_budget(lengths, settings().token_budget, _SCORES)

        def compute(micro: MicroBatch) -> None:
            feed = batch.tokens.take(micro.rows).padded(micro.length, self.spec.pad_id)
            gathered.put(micro.rows, self._session.run([OUTPUT], feed)[0])

        # The longest come first; one at a time, for the memory that each takes.
        long = sum(micro.length > LONG_ROW for micro in microbatches)
        for micro in microbatches[:long]:
            compute(micro)
        for _ in self._pool.map(compute, microbatches[long:]):
            pass  # raises what a thread raised
        return Inference(gathered.of(batch), sum(micro.tokens for micro in microbatches))


class Fp16OnnxEngine(OnnxEngine):
    """The file that plans are made of, on a CPU: to see what FP16 does to a model. It is slow."""

    precision = "fp16"
