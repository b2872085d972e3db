"""``python -m producer retry``."""

import click

from contract.engines import engine_of
from contract.jobs import find_job
from contract.redis.producing import ProducerLedger
from contract.verdict import at_fault
from producer.batches import Work
from producer.console import print_line, print_note
from producer.dataset import dataset_of
from producer.running import NEXT, run
from producer.tokenizer import open_tokenizer


@click.command()
@click.argument("job", required=False)
def retry(job: str | None) -> None:
    """Make again what is wrong with JOB: its folder or its id; without it, the latest job.

    Batches that were given up are tried again. Shards that python -m verify found at fault, and files that do not
    belong in data/, are moved to the job's folder aside/; nothing is deleted. Then every missing shard is made.
    """
    found = find_job(job)
    spec, texts = engine_of(found), dataset_of(found)
    tokenizer = open_tokenizer(spec)
    names = at_fault(found)
    ledger = ProducerLedger.open()
    found.save()  # a copy of its folder may lack the empty ones
    ledger.announce(found)
    ledger.revive(found)
    for name in names:
        print_note(f"Set aside: {found.set_aside(name)}")
    if run(Work(found, texts, tokenizer), spec, ledger, detach=False):
        print_line(NEXT)
