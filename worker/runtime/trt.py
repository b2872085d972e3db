"""TensorRT's Python module and its log. All other code takes TensorRT from here.

The module is ``tensorrt``, or ``tensorrt_rtx`` where only that is installed: TensorRT-RTX, which has the same API, runs
on the GPUs of workstations, and builds plans without a GPU. Whatever differs between TensorRT 8.6, 10, 11 and
TensorRT-RTX is asked of the library, never decided by its version number.
"""

import logging

from worker.runtime.gpus import tensorrt_package

if tensorrt_package() == "tensorrt_rtx":
    import tensorrt_rtx as trt
else:
    import tensorrt as trt

__all__ = ["LOG", "RTX", "VERSION", "trt"]

log = logging.getLogger("embedmill.worker")

RTX = tensorrt_package() == "tensorrt_rtx"
"""Whether it is TensorRT-RTX."""

VERSION = f"RTX {trt.__version__}" if RTX else str(trt.__version__)
"""As ``PlanSpec.tensorrt`` records it: ``10.13.3.9``, or ``RTX 1.7.1.116``."""


class TensorRTLog(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
    """TensorRT's own messages: all go to the log, and errors are kept for the exception that follows."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """Called by TensorRT."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)
            log.error("TensorRT: %s", message)
        elif severity == trt.ILogger.Severity.WARNING:
            log.debug("TensorRT: %s", message)

    def last(self) -> str:
        """The last three errors, for an exception's message; they are forgotten then."""
        reason = "; ".join(self.errors[-3:]) or "TensorRT gave no reason"
        self.errors.clear()
        return reason


LOG = TensorRTLog()
"""TensorRT takes one logger a process: the first that it is given."""
