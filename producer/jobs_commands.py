"""``python -m producer list``, ``cancel`` and ``clean``."""

import click

from contract.errors import UserError
from contract.redis.producing import ProducerLedger
from contract.settings import settings
from contract.words import count
from producer.console import STDOUT, print_line, print_note
from producer.jobs import cleaned, find_to_cancel, listed
from producer.tables import list_table


@click.command("list")
def list_jobs() -> None:
    """List the jobs in the output folder (EMBEDMILL_OUTPUT), and those that only Redis knows.

    Where no Redis answers, only the folder's are listed.
    """
    ledger = None
    try:
        ledger = ProducerLedger.open(at_once=True)
    except UserError as fault:
        print_note(f"Only the jobs in {settings().output.absolute()} are listed: {fault.found}")
    found = listed(ledger)
    if not found:
        print_line(f"No jobs in {settings().output.absolute()}{', and none on Redis' if ledger else ''}.")
        return
    STDOUT.print(list_table(found))


@click.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Stop JOB, a folder, an id or a --name: its batches leave Redis, its shards stay.

    Workers finish the batches that they have in hand. A producer of it that runs ends. Running the same producer
    command again goes on with the job.
    """
    ledger = ProducerLedger.open(at_once=True)
    found = find_to_cancel(job, ledger)
    out = ledger.cancel(found)
    print_line(f"Cancelled {found.id}: {count(out, 'batch', 'batches')} taken back; shards stay in {found.folder}")


@click.command()
def clean() -> None:
    """Remove what finished and cancelled jobs left on Redis and in their folders' staging/. No shard is touched."""
    found = cleaned(ProducerLedger.open(at_once=True))
    for one in found:
        print_line(f"Cleaned: {one.id}")
    print_line(f"{count(len(found), 'job')} cleaned")
