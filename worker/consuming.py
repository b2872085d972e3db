"""How ``celery worker`` takes messages: from the queues of the jobs that it serves, and from no others."""

from collections.abc import Callable

from celery import bootsteps
from celery.exceptions import Reject
from celery.worker.consumer import Connection, Consumer
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.message import Message
from kombu.utils.scheduling import round_robin_cycle

from contract.redis.keys import queue_of
from contract.redis.messages import direct_queue
from worker import holding
from worker.jobs import Jobs

_SYNC_EVERY = 0.25
"""Seconds between two looks at which jobs are served."""

jobs: Jobs | None = None
"""Of this process, if it is ``celery worker`` itself; set before it consumes."""


class SturdyConsumer(Consumer):
    """Refuses a message that is not a task's. Celery's own consumer ends with an exception, and so would the next
    worker's, which gets the same message."""

    def create_task_handler(self, *arguments: object) -> Callable[[Message], None]:
        receive = super().create_task_handler(*arguments)

        def refuse_or_receive(message: Message) -> None:
            try:
                arguments, keywords, options = message.payload
                if list(map(type, (arguments, keywords, options, message.headers["id"]))) != [list, dict, dict, str]:
                    raise TypeError("expected an id, and a body of arguments, keywords and options")
                if jobs and arguments and jobs.refuses(arguments[0]):
                    message.requeue()  # it was on its way when its job was refused
                    return
                receive(message)
            except (ContentDisallowed, DecodeError, TypeError, ValueError, LookupError, AttributeError) as error:
                self.on_invalid_task(None, message, error)

        return refuse_or_receive

    def on_ready(self) -> None:
        # Celery ends a worker whose first child is dead by now. The pool makes another one, as it does later too.
        self.pool.did_start_ok = lambda: True
        super().on_ready()


class ByPriority(round_robin_cycle):
    """The order in which Kombu asks the queues: by the jobs' priorities, and in turn where these are equal."""

    def consume(self, n: int) -> list[str]:
        """The first ``n`` queues. The first of them that is not empty gives the next message."""
        priorities = {queue_of(key): priority for key, priority in jobs.served.items()} if jobs else {}
        return sorted(self.items[:n], key=lambda queue: -priorities.get(queue, 0.0))


class JobQueues(bootsteps.StartStopStep):
    """Subscribes to the queues of the jobs that are served, and to no others."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Consumer, **options: object) -> None:
        self._timer = None
        super().__init__(consumer, **options)

    def start(self, consumer: Consumer) -> None:
        """Whenever there is a connection."""
        holding.carry_over(consumer.task_consumer.channel)
        self._sync(consumer)
        self._timer = consumer.timer.call_repeatedly(_SYNC_EVERY, self._sync, (consumer,))

    def stop(self, consumer: Consumer) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _sync(self, consumer: Consumer) -> None:
        queues = consumer.app.amqp.queues
        wanted = {queue_of(key) for key in jobs.served} if jobs else set()
        there = set(queues.consume_from)
        for name in there - wanted:
            queues.deselect(name)
            consumer.task_consumer.cancel_by_queue(name)
        for name in wanted - there:
            queue = direct_queue(name)
            queues.select_add(queue)
            consumer.task_consumer.add_queue(queue)
        if wanted - there:
            consumer.task_consumer.consume()


# ``celery inspect stats`` would answer with Kombu's options and hosts, which hold passwords of Sentinels and sockets.
Connection.info = lambda self, consumer: {"broker": consumer.connection.as_uri() if consumer.connection else "N/A"}


class BatchRequest(Request):
    """A batch's message. Once one goes back because this worker cannot serve its job, it takes no more of that job."""

    def acknowledge(self) -> None:
        if not holding.forget_if_disconnected(self.message):
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        if not holding.forget_if_disconnected(self.message):
            super().reject(requeue)

    def on_failure(self, exc_info: object, *arguments: object, **options: object) -> object:
        raised = exc_info.exception  # type: ignore[attr-defined]
        raised = getattr(raised, "exc", raised)  # Celery's wrapper of what a child raised
        if isinstance(raised, Reject) and raised.requeue and jobs:
            jobs.refuse(self.args[0], str(raised.reason))
        return super().on_failure(exc_info, *arguments, **options)
