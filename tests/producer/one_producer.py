"""A producer of a job of ``by_hand`` as a process: ``python -m tests.producer.one_producer FOLDER LOG SECONDS``.

It appends a line to LOG for each batch that it begins to make, takes so many seconds for it, and prints how many shards
and rows there are at its end.
"""

import sys
import time
from pathlib import Path

from contract.job import load_job
from contract.store import location
from producer.tokenizing import tokenizing_here
from tests.producer.by_hand import OF_NO_DATASET, ByHandMade, drive

if __name__ == "__main__":
    folder, log, seconds = sys.argv[1:]

    class Logged(ByHandMade):
        def payload(self, number: int) -> bytes:
            with Path(log).open("a", encoding="utf-8") as lines:
                lines.write(f"{number}\n")
            time.sleep(float(seconds))
            return super().payload(number)

    job = load_job(location(folder))
    totals = drive(job, made_by=tokenizing_here(Logged(job, *OF_NO_DATASET))).totals
    print(totals.shards, totals.rows)
