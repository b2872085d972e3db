"""Opens Redis for the producer's commands. It needs no more packages than a worker: ``list`` and ``status`` run there
too."""

from contract.redis.producing import ProducerLedger
from contract.settings import settings


def open_ledger(*, at_once: bool = False) -> ProducerLedger:
    """Redis, once it is known that waiting for it makes sense.

    Args:
        at_once: for a question that somebody waits for: Redis must answer now.

    Raises:
        UserError: it refuses this user, or is none that embedmill can use, or does not answer ``at_once``.
    """
    ledger = ProducerLedger(patience=settings().redis_patience)
    ledger.connection.ping(at_once=at_once)
    return ledger
