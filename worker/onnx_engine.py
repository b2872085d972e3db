"""The engine that runs anywhere: ONNX Runtime on a CPU, FP32."""

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import onnxruntime

from contract.batch import Batch
from contract.engine import INPUTS, OUTPUT, EngineSpec
from contract.settings import settings
from worker.engine import Gathered, Inference
from worker.microbatch import MicroBatch, cut_by_budget


class OnnxEngine:
    """``model.onnx`` in ONNX Runtime.

    Each thread computes micro-batches of its own. All threads on one micro-batch, ONNX Runtime's usual way, was 4 to
    20 % slower in three rounds on two cores that other processes used too, at 512 tokens, and at times half as fast at
    1,024: there every layer waits for the slowest thread.

    Args:
        spec: the engine directory.
        threads: micro-batches that are computed side by side, each on one core.
    """

    precision = "fp32"

    def __init__(self, spec: EngineSpec, threads: int) -> None:
        self.spec = spec
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._threads = threads
        self._session: onnxruntime.InferenceSession | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = self.spec.check_file("model.onnx", self.spec.onnx_sha256)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="onnx")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._session = self._pool = None

    def infer(self, batch: Batch) -> Inference:
        """See ``worker.engine.Engine.infer``.

        Raises:
            RuntimeError: the engine is not open.
        """
        if self._session is None or self._pool is None:
            raise RuntimeError("the engine is not open: use it in a with block")
        session, gathered = self._session, Gathered(self.spec, batch.lengths)
        microbatches = cut_by_budget(batch.lengths, settings().token_budget)

        def compute(micro: MicroBatch) -> None:
            feed = {name: getattr(batch, name)[micro.rows, : micro.length] for name in INPUTS}
            gathered.put(micro.rows, session.run([OUTPUT], feed)[0])

        for _ in self._pool.map(compute, microbatches):
            pass  # raises what a thread raised
        return Inference(gathered.vectors, sum(micro.tokens for micro in microbatches))
