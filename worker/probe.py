"""``python -m worker.probe ENGINE``: opens an engine and closes it, and says in one line why it cannot be opened.

First it imports what the engine's runtime takes, and prints whether that left CUDA alone.
"""

import sys

from contract.engines import load_engine
from contract.errors import UserError
from worker.runtime.choose import choose, open_engine
from worker.runtime.gpus import cuda_untouched
from worker.runtime.interface import EngineDead

UNTOUCHED = "CUDA untouched"

if __name__ == "__main__":
    try:
        spec = load_engine(sys.argv[1])
        choose(spec).runtime.load()
        print(UNTOUCHED if cuda_untouched() else "CUDA used", flush=True)
        with open_engine(spec, threads=1):
            pass
    except (UserError, EngineDead) as error:
        sys.exit(f"Error: {error}")
