"""Small batches, jobs and shards that the tests of several folders use."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.job import Job
from contract.plan import PlanSpec
from contract.redis.keys import key_of
from contract.redis.producing import ProducerLedger, Publication
from contract.redis.working import WorkerLedger
from contract.shard import ShardInfo, commit, table_of
from contract.store import Location, location
from contract.tokens import TokenRows
from contract.vectors import RowVectors
from contract.verdict import Check, Figures, RowAccounting, Verdict

FINGERPRINT = "fedcba9876543210"

ENGINE_FIELDS: dict[str, object] = {
    "name": "one",
    "model": "acme/one",
    "revision": "c0ffee",
    "architecture": "bert",
    "weights_sha256": "w",
    "tokenizer_sha256": "t",
    "vocabulary_sha256": "v",
    "onnx_sha256": "o",
    "onnx_fp16_sha256": "h",
    "onnx_packed_sha256": "p",
    "torch_sha256": "s",
    "torch_precision": "fp16",
    "pooling": "mean",
    "normalize": True,
    "hidden": 32,
    "encoder_width": 32,
    "layers": 2,
    "linear_weights": 16384,
    "max_length": 512,
    "model_length": 512,
    "pad_id": 0,
    "position_pad_id": None,
    "prefix": "",
    "created": "2026-11-01T00:00:00.000000+00:00",
}

PLAN_FIELDS: dict[str, object] = {
    "file": "plans/trt10.13.3.9-sm90-01234567.plan",
    "sha256": "s",
    "onnx_sha256": "h",
    "tensorrt": "10.13.3.9",
    "sm": 90,
    "gpu": "NVIDIA H200",
    "precision": "fp16",
    "padded_profiles": ["1-32x1-512"],
    "optimization_level": 3,
    "build_seconds": 45.0,
    "created": "2026-11-01T00:00:00.000000+00:00",
}


class WholeLedger(ProducerLedger, WorkerLedger):
    """Both sides of the ledger, for tests."""

    def publish(self, job: Job, batch: int, payload: bytes) -> bool:
        """As another producer does, whose own claim it is; returns whether the batch was not published before."""
        if batch in self.outstanding(job):
            return False
        self.connection.ask(lambda redis: redis.hset(key_of(job.key, "claims"), str(batch), "another"))
        return self.connection.ask(lambda redis: Publication(job, batch, payload)(redis, "another"))


def engine_spec(**changes: object) -> EngineSpec:
    return EngineSpec.model_validate(ENGINE_FIELDS | changes)


def plan_spec(**changes: object) -> PlanSpec:
    if "packed_profiles" in changes:
        changes["padded_profiles"] = ()
    return PlanSpec.model_validate(PLAN_FIELDS | changes)


def matrix(*rows: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.array(rows, np.int32)


def a_batch() -> Batch:
    """Rows 14, 15 and 16 of their dataset: one of 3 tokens, one of 9 cut to 4, one without a text."""
    return Batch(
        job="jargon-train-0123456789",
        number=7,
        engine=FINGERPRINT,
        row_id=np.array([14, 15, 16]),
        tokens=TokenRows(np.array([2, 57, 3, 2, 99, 98, 3], np.int32), np.array([3, 4, 0], np.int32)),
        n_tokens=np.array([3, 9, 0], np.int32),
    )


def packed(batch: Batch) -> bytes:
    """A batch's bytes as a producer packs it for an engine of 512 tokens."""
    return batch.to_bytes(512, pad_id=0)


def a_job(output: Path | Location, **changes: object) -> Job:
    """A job in ``output``, its folder named as the producer names it."""
    fields: dict[str, object] = {
        "dataset": "/data/reviews.csv",
        "config": None,
        "split": "train",
        "text": "{text}",
        "revision": "r1",
        "limit": None,
        "prefix": "",
        "engine": "tiny",
        "fingerprint": FINGERPRINT,
        "rows": 10,
        "batch_rows": 4,
    }
    return Job.create(location(output), **(fields | changes))


def info_for(batch: Batch, **changes: object) -> ShardInfo:
    fields: dict[str, object] = {
        "job": batch.job,
        "batch": batch.number,
        "engine": batch.engine,
        "runtime": "by hand",
        "precision": "fp32",
        "max_length": int(batch.lengths.max()),
        "rows": len(batch),
        "tokens": int(batch.lengths.sum()),
        "truncated": int((batch.n_tokens > batch.lengths.max()).sum()),
        "without_text": int((batch.n_tokens == 0).sum()),
        "computed_tokens": int(batch.lengths.sum()),
        "recomputed": 0,
        "failed": 0,
        "seconds": 0.5,
        "finished": "2026-01-02T03:04:05Z",
    }
    return ShardInfo.model_validate(fields | changes)


def commit_by_hand(job: Job, batch: Batch) -> bool:
    """What a worker does, with vectors that say which row they belong to instead of computed ones."""
    with_text = batch.row_id[batch.n_tokens > 0].astype(np.float32)
    vectors = np.stack([with_text, np.ones_like(with_text)], axis=1)
    table = table_of(batch, RowVectors.pooled(vectors), info_for(batch))
    return commit(table, job.shard(batch.number), job.staging)


def figures(**changes: object) -> Figures:
    fields: dict[str, object] = {
        "rows": 2,
        "vectors": 2,
        "mse": 1e-15,
        "relative_mse": 1e-12,
        "min_cosine": 1.0,
        "max_difference": None,
        "non_finite": 0,
    }
    return Figures.model_validate(fields | changes)


def a_verdict(job: Job, **changes: object) -> Verdict:
    """What the verifier finds of a job that is as it should be, after a sample of two rows."""
    fields: dict[str, object] = {
        "job": job.id,
        "engine": job.engine,
        "fingerprint": job.fingerprint,
        "dtype": job.form.dtype,
        "dimensions": job.form.dimensions,
        "columns": job.columns,
        "overlap": job.overlap,
        "dataset": job.dataset,
        "revision": job.revision,
        "rows": job.rows,
        "when": "2026-11-23T10:00:00+00:00",
        "sample": 256,
        "seed": 0,
        "compared": 2,
        "checks": (Check(name="rows", passed=True, detail="10 in, 10 out"),),
        "at_fault": (),
        "accounting": RowAccounting(job.batches, job.batches, job.rows, job.rows),
        "tokens": 9,
        "truncated": 1,
        "without_text": 0,
        "failed": 0,
        "strata": (figures(tokens="1-32"),),
        "total": figures(),
        "tolerance": {},
        "worst_rows": (),
        "failing": 0,
        "failing_rows": (),
    }
    return Verdict.model_validate(fields | changes)
