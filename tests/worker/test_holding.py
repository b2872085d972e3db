"""What a worker holds, in a Redis: whose clock dates it, and what a lost connection does to it."""

from collections.abc import Iterator
from dataclasses import dataclass

import kombu.transport.redis
import pytest
import redis
from celery.worker import state
from kombu import Connection, Consumer
from kombu.message import Message

from contract.redis.messages import direct_queue
from worker import holding


@dataclass(eq=False)
class Request:
    """As much of Celery's as is asked."""

    message: Message


@pytest.fixture
def held_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Messages are held by a clock that stands at 1,000 s."""
    monkeypatch.setattr(kombu.transport.redis.Channel, "QoS", kombu.transport.redis.QoS)
    monkeypatch.setattr(kombu.transport.redis, "time", kombu.transport.redis.time)
    holding.install(lambda: 1000.0)
    yield
    state.active_requests.clear()


def take(url: str) -> tuple[Connection, Message]:
    """A connection, and the message that came over it."""
    connection, got = Connection(url), list[Message]()
    connection.Producer().publish({}, routing_key="q", exchange="")
    consumer = Consumer(
        connection.channel(), [direct_queue("q")], callbacks=[lambda body, message: got.append(message)]
    )
    consumer.consume()
    connection.drain_events(timeout=5)
    return connection, got[0]


def lose(connection: Connection, client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    connection.collect()


@pytest.mark.usefixtures("held_by")
def test_what_a_child_computes_stays_held_over_a_lost_connection(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    connection, message = take(redis_url)
    state.active_requests.add(request := Request(message))
    lose(connection, client)
    assert (client.hlen("unacked"), client.llen("q")) == (1, 0)
    assert holding.forget_if_disconnected(Message(channel=message.channel)), "there is no connection"
    with Connection(redis_url) as again:
        holding.carry_over(channel := again.channel())
        assert not holding.forget_if_disconnected(request.message)
        channel.basic_qos(0, 1, False)
        assert not channel.qos.can_consume(), "it counts as taken"
        request.message.ack()
        assert channel.qos.can_consume()
    assert (client.hlen("unacked"), client.llen("q")) == (0, 0)


@pytest.mark.usefixtures("held_by")
@pytest.mark.parametrize("computed", [False, True])
def test_what_nobody_computes_or_an_ending_worker_holds_goes_back(
    computed: bool, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.Redis.from_url(redis_url)
    connection, message = take(redis_url)
    if computed:
        state.active_requests.add(request := Request(message))
        monkeypatch.setattr(state, "should_terminate", True)
        assert request
    lose(connection, client)
    assert (client.hlen("unacked"), client.llen("q")) == (0, 1)


@pytest.mark.usefixtures("held_by")
def test_a_message_is_dated_by_redis_and_not_by_this_machine(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    connection, message = take(redis_url)
    assert client.zscore("unacked_index", message.delivery_tag) == 1000.0
    message.channel.qos.restore_visible(interval=1)
    assert client.hlen("unacked") == 1, "this machine's clock is half a century ahead, and nobody's business"
    connection.release()
