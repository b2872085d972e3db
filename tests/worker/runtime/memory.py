"""GPU memory, for the tests of each runtime on a GPU."""

import subprocess

from bench.machine import nvidia_smi


def gpu_memory() -> int:
    """Bytes that are in use, by whomever, of the first GPU that CUDA may use."""
    query = nvidia_smi("--query-gpu=memory.used", "--format=csv,noheader,nounits")
    told = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    return int(told.splitlines()[0]) * 2**20
