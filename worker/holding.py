"""The messages that a worker holds, in Kombu's keys: dated by Redis's clock, and kept when the connection is lost.

Kombu dates a message by the clock of the worker that takes it, and any other worker compares that with its own clock:
if this one is an hour ahead, every message looks abandoned. And when a connection is lost, Kombu puts all its messages
back into the queue, also those whose batches a child is computing, and another worker would compute these again.
"""

from collections.abc import Callable

import kombu.transport.redis
from celery.worker import state
from kombu.message import Message

_kept: dict[str, Message] = {}
"""Messages of a lost connection whose batches are being computed, by their tags."""


class HoldingQoS(kombu.transport.redis.QoS):
    """When the connection is lost, puts back the messages that no child works on; when the worker ends, all."""

    def restore_unacked_once(self, stderr: object = None) -> None:
        if state.should_stop is None and state.should_terminate is None:
            for request in tuple(state.active_requests):
                if message := self._delivered.pop(request.message.delivery_tag, None):
                    _kept[message.delivery_tag] = message
        super().restore_unacked_once(stderr)  # type: ignore[no-untyped-call]


def install(redis_time: Callable[[], float]) -> None:
    """Have Kombu hold messages this way in this process.

    Args:
        redis_time: Redis's clock, seconds since the epoch.
    """
    kombu.transport.redis.Channel.QoS = HoldingQoS
    setattr(kombu.transport.redis, "time", redis_time)  # noqa: B010 - which the module imports for itself


def carry_over(channel: kombu.transport.redis.Channel) -> None:
    """Hold the kept messages of a lost connection on a new one: they are acknowledged or put back there, and count as
    taken."""
    while _kept:
        tag, message = _kept.popitem()
        message.channel = channel
        channel.qos._delivered[tag] = message


def forget_if_disconnected(message: Message) -> bool:
    """Give up a message whose connection is lost: it can be neither acknowledged nor put back. Redis still has it, and
    whichever worker gets it finds the shard, or computes the batch.

    Returns:
        Whether the connection is lost.
    """
    if not message.channel.closed:
        return False
    _kept.pop(message.delivery_tag, None)
    return True
