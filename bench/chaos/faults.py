"""The faults of ``make chaos``, and those of the soak."""

from bench.chaos.fault import Fault, Once
from bench.chaos.place import (
    Place,
    in_bucket,
    on_hosts,
    on_slow_disk,
    on_small_disk,
    with_clocks,
    with_own_engine,
    with_small_tmp,
)
from bench.chaos.processes import (
    cut_off,
    give_notice,
    kill_child,
    kill_producer,
    kill_producers_in_turn,
    kill_worker,
    lose_host,
    stop_child,
)
from bench.chaos.rig import one_server
from bench.chaos.servers import Servers, Start, WatchedServers
from bench.chaos.surroundings import (
    answer_wrongly,
    confuse,
    fill,
    fill_redis,
    reset_connections,
    restart_redis,
    set_clock,
    slow_disk,
    swap_engine,
)

RAISES, KILLS, NAN = 411, 1033, 1777
AOF = one_server("--appendonly", "yes", "--appendfsync", "always")
DEFAULTS = {"EMBEDMILL_VISIBILITY_TIMEOUT": "600"}
"""Only the producer can tell that a worker is gone."""


def watched(start: Start, place: Place) -> Servers:
    return WatchedServers(start, place.folder)


FAULTS = (
    Fault("SIGKILLs of children", kill_child, 12, (0.1, 0.9), seconds=0.3),
    Fault("SIGKILLs of whole workers", kill_worker, 12, (0.2, 1.8), seconds=0.3),
    Fault("hosts that vanish", lose_host(3), 8, (0.5, 2), changes=(on_hosts,), env=DEFAULTS, seconds=0.3),
    Fault("hosts cut off, then back", cut_off(8), 3, (1, 3), changes=(on_hosts,), seconds=0.3),
    Fault("preemption notices", give_notice, 16, (0.2, 1.2), seconds=0.3),
    Fault("children that stand still for 8 s", stop_child(8), 3, (0.5, 2), seconds=0.2),
    Fault("producer killed", kill_producer, 8, (0.5, 4), seconds=0.3),
    Fault("two producers killed in turn", kill_producers_in_turn, 16, (0.5, 3), producers=2, seconds=0.3),
    Fault("Redis killed and restarted, AOF on", restart_redis, 5, (1, 3), servers=AOF),
    Fault("Redis killed, all in it lost", restart_redis, 3, (3, 6), after=20, seconds=0.2),
    Fault("Redis failed over by Sentinels", restart_redis, 3, (2, 5), after=10, servers=watched, seconds=0.2),
    Fault("Redis at maxmemory", fill_redis(4), 3, (2, 4), after=10),
    Fault("connections reset every second", reset_connections, 30, (1, 1)),
    Fault("every message twice, strangers, garbage", confuse(), 10**6, (0.1, 0.1), seconds=0.05),
    Fault("disk full, then freed", fill("output", 8), 2, (1, 3), after=10, changes=(on_small_disk,)),
    Fault("disk that writes 20 times a second", slow_disk(20, 5), 3, (1, 3), after=10, changes=(on_slow_disk,)),
    Fault("temporary folder full", fill("tmp", 6), 3, (1, 3), after=10, changes=(with_small_tmp,)),
    Fault("bucket that answers 503, late or not", answer_wrongly, 60, (0, 0.3), after=5, changes=(in_bucket,)),
    Fault("a worker's clock set forward an hour", set_clock(), 6, (1, 4), after=10, changes=(with_clocks,)),
    Fault("Redis's clock set forward an hour", set_clock("redis"), 4, (2, 5), after=10, changes=(with_clocks,)),
    Fault("engine swapped while workers run", swap_engine(3), 6, (1, 3), after=10, changes=(with_own_engine,)),
    Fault("a row that raises", env={"CHAOS_RAISE": str(RAISES)}, failed=(RAISES,), seconds=0.02),
    Fault("a row that kills the process", env={"CHAOS_KILL": str(KILLS)}, failed=(KILLS,), seconds=0.02),
    Fault("a row that yields NaN", env={"CHAOS_NAN": str(NAN)}, failed=(NAN,), seconds=0.02),
)

SOAKED: dict[str, Once] = {
    "SIGKILL of a child": kill_child,
    "SIGKILL of a whole worker": kill_worker,
    "host that vanishes": lose_host(3),
    "host cut off": cut_off(8),
    "preemption notice": give_notice,
    "child that stands still for 8 s": stop_child(8),
    "producer killed": kill_producer,
    "Redis killed and restarted": restart_redis,
    "Redis at maxmemory": fill_redis(4),
    "connections reset": reset_connections,
    "disk full": fill("output", 4),
    "temporary folder full": fill("tmp", 4),
    "a worker's clock set forward an hour": set_clock(),
    "Redis's clock set forward an hour": set_clock("redis"),
    "engine swapped": swap_engine(3, another=False),  # a producer that began meanwhile would do another job
}
"""Each is drawn as often as any other."""
