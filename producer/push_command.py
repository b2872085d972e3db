"""``python -m producer push``."""

import click
from rich.filesize import decimal

from contract.entry import importing
from contract.jobs import find_job
from contract.words import count
from producer.console import print_line, print_note


@click.command()
@click.argument("job", required=False)
@click.option("--to", required=True, metavar="USER/NAME", help="The dataset's repository on the Hub; made if need be.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--replace", is_flag=True, help="Put the job in the place of what the repository's data/ holds.")
@click.option("--unverified", is_flag=True, help="Push a job that is not verified; its card says so.")
def push(job: str | None, to: str, private: bool, replace: bool, unverified: bool) -> None:
    """Publish JOB on the Hub, shards and a card, in one commit: its folder or its id; without it, the latest job.

    HF_TOKEN, or hf auth login, says who you are.
    """
    with importing():  # huggingface_hub takes a fifth of the time that the other commands' imports take
        from producer.push import push as push_job, ready
    found = ready(find_job(job), unverified=unverified)
    size = decimal(found.job.bytes())
    print_note(f"{count(found.job.batches, 'shard')}, {size}, to {to}")
    if found.doubt:
        print_note(f"Not verified: {found.doubt}")
    address = push_job(found, to, private=private, overwrite=replace)
    print_line(f"Pushed: {address}")
    print_line(f'In Python: datasets.load_dataset("{to}")')
