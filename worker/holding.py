"""The messages that a worker holds, in Kombu's keys: dated by Redis's clock, and kept over a connection that is lost.

Kombu dates a message by the clock of the machine that takes it, and compares by that of any other: to one whose clock
is an hour ahead every message is abandoned. And it gives back what came over a lost connection, also what a child
computes: another worker would compute it too.
"""

from collections.abc import Callable

import kombu.transport.redis
from celery.worker import state
from kombu.message import Message

_kept: dict[str, Message] = {}
"""Messages of a lost connection that children compute, by their tags."""


class HoldingQoS(kombu.transport.redis.QoS):
    """Gives back what no child computes when the connection is lost, and all when the worker ends."""

    def restore_unacked_once(self, stderr: object = None) -> None:
        if state.should_stop is None and state.should_terminate is None:
            for request in tuple(state.active_requests):
                if message := self._delivered.pop(request.message.delivery_tag, None):
                    _kept[message.delivery_tag] = message
        super().restore_unacked_once(stderr)  # type: ignore[no-untyped-call]


def use(redis_time: Callable[[], float]) -> None:
    """Hold messages so from now on.

    Args:
        redis_time: Redis's clock, seconds since the epoch.
    """
    kombu.transport.redis.Channel.QoS = HoldingQoS
    setattr(kombu.transport.redis, "time", redis_time)  # noqa: B010 - which the module imports for itself


def carry_over(channel: kombu.transport.redis.Channel) -> None:
    """Hold on a new connection what a lost one brought: it is acknowledged or given back there, and counts as taken."""
    while _kept:
        tag, message = _kept.popitem()
        message.channel = channel
        channel.qos._delivered[tag] = message


def let_go(message: Message) -> bool:
    """Whether a message can be neither acknowledged nor given back just now, for lack of a connection. Redis still has
    it: whoever gets it finds the shard, or computes it."""
    if not message.channel.closed:
        return False
    _kept.pop(message.delivery_tag, None)
    return True
