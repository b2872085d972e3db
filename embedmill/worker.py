"""``python -m embedmill.worker``: ``python -m worker``, which most often waits for an engine that is being built.

A child that is forked from it then loads the engine. What loading it and a first batch take is imported before, for
every child.
"""

import runpy

from contract.entry import end_at_once, uncollected

if __name__ == "__main__":
    end_at_once()
    with uncollected():
        import pyarrow as pa

        from worker.runtime.gpus import gpu_count

        pa.array([""])  # the first one has pyarrow import pandas
        if not gpu_count():
            import onnxruntime  # noqa: F401
    runpy.run_module("worker", run_name="__main__")
