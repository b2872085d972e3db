"""What producer, workers and people know of one another: through Redis, and nothing else.

address.py      where Redis is, for redis-py and for Kombu
connection.py   a connection that waits for a Redis that does not answer or is full
refusals.py     what to tell the user of a Redis that refuses
messages.py     Celery on this Redis: a queue for each job, a message for each batch
keys.py         the names of the keys, and what is under each
ledger.py       what producer and workers both ask
claims.py       which producer makes which batches
producing.py    the producer's side
working.py      the worker's side
heartbeat.py    what each worker does, from minute to minute
"""
