"""``python -m producer status``."""

import time

import click
from rich.console import Console
from rich.live import Live

from contract.jobs import find_job
from contract.redis.producing import ProducerLedger
from producer.status import status_of
from producer.tables import status_table


@click.command()
@click.argument("job", required=False)
@click.option("--watch", is_flag=True, help="Look again every two seconds, until the job is at its end.")
def status(job: str | None, watch: bool) -> None:
    """Show how far JOB is: its folder or its id; without it, the latest job."""
    found, ledger = find_job(job), ProducerLedger.open(at_once=True)
    now = status_of(found, ledger)
    with Live(status_table(now), console=Console(markup=False), auto_refresh=False) as live:
        while watch and now.done + len(now.dead) < found.batches:
            time.sleep(2)
            now = status_of(found, ledger)
            live.update(status_table(now), refresh=True)
