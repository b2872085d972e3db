"""``python -m worker.ready``: whether a worker of this host has loaded its engine, for a container's readiness probe.

The exit status is 0 if a child process of this host has sent a heartbeat lately and has started.
"""

import sys
from collections.abc import Iterable

from contract.errors import UserError
from contract.redis.heartbeat import Heartbeat, alive_at
from contract.redis.ledger import Ledger
from worker.heartbeat import host_id


def why_not(heartbeats: Iterable[Heartbeat], now: float) -> str:
    """Why no worker of this host is ready; empty where one is.

    Args:
        heartbeats: every worker's.
        now: seconds since the epoch, by Redis's clock.
    """
    here = [one for one in heartbeats if one.worker.startswith(host_id()) and alive_at(one, now)]
    if any(one.is_child and one.state != "starting" for one in here):
        return ""
    waits = sorted({one.waits_for for one in here if one.waits_for})
    return f"waits for {'; '.join(waits)}" if waits else "no worker of this host was heard of lately"


if __name__ == "__main__":
    ledger = Ledger(patience=0)
    try:
        if found := why_not(ledger.heartbeats(), ledger.now()):
            sys.exit(f"not ready: {found}")
    except UserError as error:
        sys.exit(f"not ready: {error}")
