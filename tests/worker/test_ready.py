"""What a container's probe asks."""

from typing import Any

from contract.redis.heartbeat import Heartbeat
from tests.commands import run
from worker.heartbeat import command_id
from worker.ready import why_not

NOW = 5000.0


def beat(worker: str, **fields: Any) -> Heartbeat:
    return Heartbeat.model_validate({"worker": worker, "state": "idle", "beat": NOW - 1, "since": NOW - 9} | fields)


def test_a_host_is_ready_once_one_of_its_children_has_its_engine() -> None:
    own = command_id(7)
    starting = {"state": "starting", "waits_for": "its engine, which is being loaded"}
    assert why_not([beat(own), beat(f"{own}/0", **starting), beat(f"{own}/1", state="computing")], NOW) == ""
    assert why_not([beat(own), beat(f"{own}/0", **starting)], NOW) == "waits for its engine, which is being loaded"
    assert why_not([beat(own), beat(f"{own}/0", beat=NOW - 300)], NOW) == "no worker of this host was heard of lately"
    assert why_not([beat("other:1:7/0")], NOW) == "no worker of this host was heard of lately"


def test_the_command_says_in_one_line_why_not(redis_url: str) -> None:
    done = run("worker.ready", expect=1)
    assert done.stderr == "not ready: no worker of this host was heard of lately\n"
