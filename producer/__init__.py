"""Step 1: a dataset becomes batches on Redis, and the job is driven until every batch has its shard."""
