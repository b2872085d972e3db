"""``python -m worker``: ``celery -A worker worker`` with the same options. Ctrl-C is one line also while
Celery is being imported."""

import os
import sys

from contract.entry import end_at_once

if __name__ == "__main__":
    end_at_once()  # before any import that takes time
    from worker.environment import STOP

    os.environ |= STOP
    from celery.__main__ import main

    sys.argv[:1] = ["celery", "-A", "worker", "worker"]
    main()
