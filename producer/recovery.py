"""Batches that are lost are published again: what ``producer.lost`` decides, done."""

import time

from contract.job import Job
from contract.redis.messages import Held
from contract.redis.producing import ProducerLedger
from producer.lost import Sighting, all_in_sight, batch_states, lost, sightings
from producer.outbox import Outbox
from producer.view import View


class Recovery:
    """Follows the state of each published batch from look to look.

    Args:
        job: the job.
        ledger: its keys in Redis.
        outbox: sends the messages.
        missing_after: seconds for which a batch's message must be nowhere until the batch is published again.
    """

    def __init__(self, job: Job, ledger: ProducerLedger, outbox: Outbox, missing_after: float) -> None:
        self._job, self._ledger, self._outbox, self._missing_after = job, ledger, outbox, missing_after
        self._seen: dict[int, Sighting] = {}

    def look(self, view: View) -> None:
        """Publish again what is lost.

        Args:
            view: the job and all workers now.

        Raises:
            UserError: Redis did not take a message within the ledger's patience.
        """
        for batch, message in self._lost(view).items():
            if message is None:
                self._outbox.send(batch)
            elif self._ledger.take_back(message):
                self._ledger.put_first(message)
            del self._seen[batch]

    def forget(self) -> None:
        """Begin anew at the next look: since the last one another producer may have looked."""
        self._seen = {}

    def _lost(self, view: View) -> dict[int, Held | None]:
        """The batches that are lost → the message of each that a worker holds; None where there is no message."""
        if all_in_sight(view):
            self.forget()
            return {}
        held = {message.batch: message for message in self._ledger.held() if message.job == view.job}
        states = batch_states(view, queued=self._ledger.waiting(self._job), held=held)
        now = time.monotonic()
        self._seen = sightings(states, self._seen, now)
        gone = lost(self._seen, now=now, timeout=view.timeout, missing_after=self._missing_after)
        return {batch: held.get(batch) for batch in sorted(gone)}
