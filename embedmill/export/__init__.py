"""``embedmill export``: a job's vectors into a Lance dataset, a FAISS index or a PostgreSQL table."""
