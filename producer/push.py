"""A finished job becomes a dataset on the Hub, in one commit."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils.tqdm import disable_progress_bars
from tqdm.contrib.concurrent import thread_map

from contract.engines import engine_of
from contract.errors import UserError, reason
from contract.job import Job
from contract.store import Location
from contract.verdict import doubt, load_verdict
from contract.words import count
from producer.card import Ready, card_of, pushed_job
from producer.shards import ShardWatch

_MOST_SHARDS = 10_000
"""Files that the Hub takes in one folder."""

_AT_ONCE = 4
"""Shards of a bucket that are in memory at the same time."""


def ready(job: Job, *, unverified: bool) -> Ready:
    """Check that a job is complete and verified; nothing leaves this machine yet.

    Args:
        job: the job.
        unverified: let it pass though it is not verified.

    Raises:
        UserError: it is not complete, or not verified, or too many files.
    """
    if len(job.committed()) < job.batches:
        raise UserError(
            f"{job.folder} has {len(job.committed()):,} of {count(job.batches, 'shard')}",
            "a job is pushed when it is complete",
            "run the same python -m producer --dataset … again: it goes on where it was",
        )
    if job.batches > _MOST_SHARDS:
        raise UserError(
            f"{job.id} has {count(job.batches, 'shard')}",
            f"the Hub takes at most {_MOST_SHARDS:,} files in a folder",
            f'datasets.load_dataset("{job.folder}").push_to_hub("user/name") makes fewer and larger ones',
        )
    totals = ShardWatch(job).refresh()
    verdict = load_verdict(job)
    why = doubt(job, verdict)
    if why and not unverified:
        raise UserError(
            f"{job.id} is not pushed: {why}",
            hint=f"run: python -m verify {job.folder}, or push it as it is with --unverified",
        )
    return Ready(job, totals, verdict, why)


def push(ready: Ready, to: str, *, private: bool, overwrite: bool) -> str:
    """Upload a job's shards and its card, and commit them together.

    Until the commit the repository is what it was; what was uploaded until then is not uploaded again.

    Args:
        ready: the job.
        to: the repository, ``user/name``; made if it is not there.
        private: whether a new one is private.
        overwrite: whether the shards of another job, or other files in ``data/``, go.

    Returns:
        The address of what the repository is now.

    Raises:
        UserError: the Hub cannot be reached or refuses, or the repository holds something else.
    """
    job, spec, api = ready.job, engine_of(ready.job), HfApi()
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _explained(to):
        made = api.create_repo(to, repo_type="dataset", private=private or None, exist_ok=True)
        repo = str(made.repo_id)
        there = api.dataset_info(repo)
        files = {str(sibling.rfilename) for sibling in there.siblings or ()}
        front_matter = _front_matter(api, repo, str(there.sha)) if "README.md" in files else {}
        shards = {f"data/{job.shard(batch).name}": job.shard(batch) for batch in range(job.batches)}
        stale = sorted(file for file in files if file.startswith("data/") and file not in shards)
        other = pushed_job(front_matter) not in (None, job.id)
        if (stale or other) and not overwrite:
            raise UserError(
                f"{repo} holds {pushed_job(front_matter) or ', '.join(stale[:3])}",
                f"a repository holds one job, and this one is {job.id}",
                "choose another name, or put this one in its place: --replace",
            )
        kept = {} if stale or other else front_matter
        card = card_of(ready, spec, repo, kept)
        api.create_commit(
            repo,
            [
                CommitOperationAdd("README.md", card.encode()),
                *_additions(api, repo, shards),
                *(CommitOperationDelete(file) for file in stale),
            ],
            commit_message=f"{count(job.rows, 'embedding')}: {job.id}",
            repo_type="dataset",
            parent_commit=there.sha,
        )
    return f"{made}"


def _additions(api: HfApi, repo: str, shards: Mapping[str, Location]) -> list[CommitOperationAdd]:
    """The shards, to be committed. From a bucket they are uploaded here, a few at a time: no more fit into memory."""

    def addition(path: str) -> CommitOperationAdd:
        shard = shards[path]
        if shard.local:
            return CommitOperationAdd(path, str(shard))
        fetched = CommitOperationAdd(path, shard.read_bytes())
        api.preupload_lfs_files(repo, [fetched], repo_type="dataset")
        return fetched

    quiet = not sys.stderr.isatty()
    return thread_map(addition, shards, max_workers=_AT_ONCE, desc="Shards", unit="shard", disable=quiet)


def _front_matter(api: HfApi, repo: str, revision: str) -> dict[str, Any]:
    file = api.hf_hub_download(repo, "README.md", repo_type="dataset", revision=revision)
    card = DatasetCard(Path(file).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    found: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    return found


@contextlib.contextmanager
def _explained(to: str) -> Iterator[None]:
    """Say of each error what the user can do about it."""
    state, again = f"{to} is what it was, or has all of the job", "run the same command again: what is uploaded stays"
    try:
        yield
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"{to!r} is no name of a repository ({reason(error)})", "expected user/name") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"the Hub does not let this user write to {to} ({reason(error)})",
                "expected a token with the right to write there",
                "set it: export HF_TOKEN=hf_…, or: hf auth login",
            ) from None
        if status == 412:
            raise UserError(f"somebody else has changed {to} meanwhile", state, again) from None
        raise UserError(f"the Hub refuses ({reason(error)})", state, again) from None
    except KeyboardInterrupt:
        raise UserError("interrupted", state, again) from None
    except Exception as error:  # of the network, and there are many kinds
        raise UserError(f"the upload failed ({reason(error.__cause__ or error)})", state, again) from None
