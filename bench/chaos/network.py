"""Several hosts on one machine: a network namespace each, joined by a switch in one more."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence

_TAG = f"em{os.getpid()}"
_NETWORK = f"10.77.{os.getpid() % 256}"


@contextlib.contextmanager
def network(names: Sequence[str]) -> Iterator[tuple[dict[str, tuple[str, ...]], str]]:
    """Hosts of these names, gone with their links when the block ends. Needs root and iproute2.

    Yields:
        What a command is put behind to run on each, and the first one's address, which this machine reaches too.
    """
    switch = f"{_TAG}-switch"
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            inside = f"{_TAG}-{name}"
            _ip("netns", "add", inside)
            _ip("-n", inside, "link", "set", "lo", "up")
            _ip("-n", inside, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            _ip("-n", inside, "address", "add", f"{_NETWORK}.{number + 1}/24", "dev", "eth0")
            _ip("-n", inside, "link", "set", "eth0", "up")
            _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
        _ip("link", "add", _TAG, "type", "veth", "peer", "name", "uplink", "netns", switch)
        _ip("address", "add", f"{_NETWORK}.254/24", "dev", _TAG)
        _ip("link", "set", _TAG, "up")
        _ip("-n", switch, "link", "set", "uplink", "master", "bridge", "up")
        yield {name: ("ip", "netns", "exec", f"{_TAG}-{name}") for name in names}, f"{_NETWORK}.1"
    finally:
        for namespace in [switch, *(f"{_TAG}-{name}" for name in names)]:
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
