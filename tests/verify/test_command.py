"""``python -m verify`` on jobs that are as they should be, and on harmed ones: each is caught and its rows named."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from bench.families import save_family
from bench.tiny_model import save_tiny_model
from contract.engine import EngineSpec
from contract.job import Job
from contract.settings import settings
from tests.conftest import build_engine
from tests.verify.jobs import (
    TEXTS,
    finished_job,
    rewrite,
    save_texts,
    scaled,
    with_column,
    with_element,
    with_value,
)
from verify.command import main

pytestmark = pytest.mark.usefixtures("undrawn")


def verify(*arguments: object) -> Result:
    """The command in this process; it must end by itself, and not by an error of its own."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def verdict(job: Job) -> dict[str, object]:
    return json.loads((job.folder / "verify.json").read_text(encoding="utf-8"))


def failed(job: Job) -> set[str]:
    return {check["name"] for check in verdict(job)["checks"] if not check["passed"]}


def failing_rows(job: Job) -> list[int]:
    return sorted(row["row_id"] for row in verdict(job)["failing_rows"])


def test_a_good_job_passes(job: Job) -> None:
    done = verify()
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Verified: 48 rows accounted for (2 truncated, 2 without a text), 46 recomputed" in done.stdout
    assert "FAIL" not in done.stdout
    found = verdict(job)
    assert (found["passed"], found["job"], found["engine"], found["fingerprint"]) == (
        True, job.id, "tiny", job.fingerprint,
    )  # fmt: skip
    assert (found["sample"], found["seed"], found["compared"], found["rows"]) == (256, 0, 46, 48)
    assert sum(stratum["rows"] for stratum in found["strata"]) == found["total"]["rows"] == 46  # type: ignore
    assert found["total"]["min_cosine"] > 0.999999  # type: ignore[index]
    assert set(found["tolerance"]) == {"fp32"}  # type: ignore[call-overload]
    assert len(found["worst_rows"]) == 20  # type: ignore[arg-type]


def test_a_harmed_job_fails_in_a_process_of_its_own(job: Job) -> None:
    rewrite(job, 1, with_element(4, 7, 0.5))
    job.shard(2).unlink()
    done = subprocess.run([sys.executable, "-m", "verify"], capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Traceback" not in done.stdout
    assert "\nrow 20: cosine " in done.stdout
    assert "train-00002-of-00003.parquet" in done.stdout
    assert f"python -m producer retry {job.folder}" in done.stdout
    assert failed(job) == {"shards", "rows", "fp32 vectors"}


def test_the_folder_may_be_named_or_the_id_given(job: Job) -> None:
    for name in (job.folder, job.id, os.path.relpath(str(job.folder))):
        assert verify(name, "--sample", 3).exit_code == 0
        assert verdict(job)["compared"] == 3


def test_the_seed_chooses_the_sample(job: Job) -> None:
    samples = []
    for seed in (1, 1, 2):
        assert verify("--sample", 6, "--seed", seed).exit_code == 0
        samples.append([row["row_id"] for row in verdict(job)["worst_rows"]])
    assert samples[0] == samples[1] != samples[2]


def swapped(table: pa.Table) -> pa.Table:
    order = np.arange(len(table))
    order[[3, 5]] = [5, 3]
    return with_column(table, "embedding", table["embedding"].combine_chunks().take(order))


@pytest.mark.parametrize(
    ("change", "checks", "rows"),
    [
        (with_element(4, 7, 0.5), {"fp32 vectors"}, [4]),
        (with_element(4, 7, float("nan")), {"finite", "fp32 vectors"}, [4]),
        (with_element(4, 7, None), {"finite", "fp32 vectors"}, [4]),  # type: ignore[arg-type]
        (scaled(4, 1.01), {"fp32 vectors"}, [4]),
        (scaled(4, 0.0), {"norms", "fp32 vectors"}, [4]),
        (swapped, {"fp32 vectors"}, [3, 5]),
    ],
)
def test_a_wrong_vector_is_caught(
    job: Job, change: Callable[[pa.Table], pa.Table], checks: set[str], rows: list[int]
) -> None:
    rewrite(job, 0, change)
    result = verify()
    assert result.exit_code == 1
    assert failed(job) == checks
    assert failing_rows(job) == rows
    assert all(f"\nrow {row}: " in result.stdout for row in rows)
    assert verdict(job)["at_fault"] == ["train-00000-of-00003.parquet"]
    assert "At fault: train-00000-of-00003.parquet\n" in result.stdout


def test_one_vector_in_many_is_caught_even_if_the_whole_sample_keeps_to_the_tolerance(job: Job) -> None:
    rewrite(job, 0, scaled(4, 1.006))
    assert verify().exit_code == 1
    assert verdict(job)["total"]["relative_mse"] < 2e-5  # type: ignore[index]
    assert failing_rows(job) == [4]


def test_however_many_rows_fail_the_file_names_a_thousand(tiny: EngineSpec, tmp_path: Path) -> None:
    texts: list[str | None] = [f"{number} bits" for number in range(1040)]
    job = finished_job(tiny, save_texts(tmp_path / "many", texts), batch_rows=520)
    for batch in range(2):
        rewrite(job, batch, lambda table: with_column(table, "embedding", negated(table["embedding"])))
    result = verify("--sample", "all")
    assert result.exit_code == 1
    assert failed(job) == {"fp32 vectors"}
    assert (verdict(job)["compared"], verdict(job)["failing"]) == (1040, 1040)
    assert failing_rows(job) == list(range(1000))
    assert result.stdout.count("\nrow ") == 20
    assert "\nand 1,020 more rows; verify.json has 1,000 of the 1,040\n" in result.stdout


def negated(vectors: pa.ChunkedArray) -> pa.Array:
    return pa.array((-np.stack(vectors.to_numpy())).tolist(), vectors.type)


def test_a_wrong_n_tokens_is_caught(job: Job) -> None:
    right = pq.read_table(job.shard(0))["n_tokens"].to_pylist()
    tokens = json.loads(pq.read_schema(job.shard(0)).metadata[b"embedmill"])["tokens"]
    rewrite(job, 0, with_value("n_tokens", 6, right[6] + 1), tokens=tokens + 1)
    result = verify()
    assert result.exit_code == 1
    assert failed(job) == {"lengths"}
    assert f"row 6: n_tokens {right[6] + 1}, recomputed {right[6]}" in result.stdout


def test_a_wrong_truncated_is_caught(job: Job) -> None:
    rewrite(job, 0, with_value("truncated", 6, True))
    assert verify("--sample", 1).exit_code == 1
    assert "sums" in failed(job)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda table: table.slice(1), "missing: 1 (0)"),
        (lambda table: pa.concat_tables([table, table.slice(15)]), "twice: 1 (15)"),
        (with_value("row_id", 2, 40), "in a shard that is not theirs: 1 (40)"),
    ],
)
def test_wrong_rows_are_caught(job: Job, change: Callable[[pa.Table], pa.Table], rows: str) -> None:
    rewrite(job, 0, change)
    assert verify().exit_code == 1
    assert "rows" in failed(job)
    details = {check["name"]: check["detail"] for check in verdict(job)["checks"]}
    assert rows in details["rows"]


def test_a_truncated_file_is_caught_and_the_rest_compared(job: Job) -> None:
    job.shard(1).write_bytes(job.shard(1).read_bytes()[:-9])
    result = verify()
    assert result.exit_code == 1
    assert failed(job) == {"shards", "rows"}
    assert verdict(job)["compared"] == 30
    assert verdict(job)["at_fault"] == ["train-00001-of-00003.parquet"]
    assert "At fault: train-00001-of-00003.parquet\n" in result.stdout


def test_a_shard_whose_vectors_are_damaged_is_caught_and_the_rest_compared(job: Job) -> None:
    file = job.shard(1)
    columns = pq.read_metadata(file).row_group(0)
    vectors = next(columns.column(n) for n in range(5) if columns.column(n).path_in_schema.startswith("embedding."))
    damaged = bytearray(file.read_bytes())
    start, size = vectors.data_page_offset, vectors.total_compressed_size
    damaged[start : start + size] = bytes(size)
    file.write_bytes(damaged)
    result = verify()
    assert result.exit_code == 1
    assert failed(job) == {"shards"}
    assert verdict(job)["compared"] == 30
    assert verdict(job)["at_fault"] == ["train-00001-of-00003.parquet"]
    assert "At fault: train-00001-of-00003.parquet\n" in result.stdout


def test_nothing_but_missing_shards(job: Job) -> None:
    for batch in range(3):
        job.shard(batch).unlink()
    result = verify()
    assert result.exit_code == 1
    assert f"Make the missing shards: python -m producer retry {job.folder}" in result.stdout
    assert verdict(job)["compared"] == 0
    assert failed(job) == {"shards", "rows", "sample"}
    assert "No vector was compared" not in result.stdout  # the line above is what to do


def test_a_static_models_text_without_a_token_has_no_vector(dataset: Path, tmp_path: Path) -> None:
    """Row 41, a zero-width space: ``encode()`` gives zeros."""
    spec = build_engine(save_family("StaticEmbedding", tmp_path / "family"), f"static-{tmp_path.name}", max_length=64)
    job = finished_job(spec, dataset, limit=46)
    assert spec.tiers == ("modules",)
    told = verify(job.folder)
    assert told.exit_code == 0, told.output
    rows = pq.ParquetDataset(str(job.data)).read().sort_by("row_id").slice(40, 2).to_pydict()
    assert rows["n_tokens"] == [0, 0]
    assert rows["embedding"] == [None, None]


def test_a_text_whose_row_claims_to_have_none_is_caught(job: Job) -> None:
    def change(table: pa.Table) -> pa.Table:
        return with_value("n_tokens", 6, 0)(with_value("embedding", 6, None)(table))

    tokens = pq.read_table(job.shard(0))["n_tokens"].to_pylist()[6]
    recorded = json.loads(pq.read_schema(job.shard(0)).metadata[b"embedmill"])["tokens"]
    rewrite(job, 0, change, tokens=recorded - tokens, without_text=1)
    assert verify().exit_code == 1
    assert failed(job) == {"without a text"}
    assert "the dataset has a text: 1 (6)" in str(verdict(job)["checks"])


def test_a_vector_where_the_dataset_has_no_text_is_caught(job: Job, tiny: EngineSpec) -> None:
    def change(table: pa.Table) -> pa.Table:
        return with_value("n_tokens", 8, 3)(with_value("embedding", 8, [1.0] * tiny.hidden)(table))

    rewrite(job, 2, change)
    result = verify()
    assert result.exit_code == 1
    assert {"lengths", "fp32 vectors"} <= failed(job)
    assert "row 40: n_tokens 3, recomputed 0" in result.stdout


def nothing_compared(job: Job) -> str:
    """The detail of the check ``sample``, which alone fails: terminal, page, file and exit status agree on it."""
    result = verify()
    assert result.exit_code == 1
    assert (failed(job), verdict(job)["passed"], verdict(job)["compared"]) == ({"sample"}, False, 0)
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    for told in (result.stdout, page):
        assert "Not verified (sample)" in told
        assert "Verified: " not in told.replace("Not verified: ", "")
        assert "No vector was compared with PyTorch" in told
    (detail,) = [check["detail"] for check in verdict(job)["checks"] if check["name"] == "sample"]
    return str(detail)


def test_a_dataset_without_any_text_is_not_verified(tiny: EngineSpec, tmp_path: Path) -> None:
    job = finished_job(tiny, save_texts(tmp_path / "nulls", [None, " ", None]))
    told = nothing_compared(job)
    assert "no row was computed again (3 rows read, 3 without a text, 0 with an error); expected at least one" in told
    assert "the job's text is text: see what the dataset has there; --text chooses another" in told
    assert verdict(job)["without_text"] == 3


def test_a_job_whose_every_row_has_an_error_is_not_verified(tiny: EngineSpec, tmp_path: Path) -> None:
    job = finished_job(tiny, save_texts(tmp_path / "all", ["one", "two", None]))

    def fail_all(table: pa.Table) -> pa.Table:
        errors = pa.array(["out of luck", "out of luck", None], pa.string())
        kind = table.schema.field("embedding").type
        return with_column(with_column(table, "embedding", pa.nulls(3, kind)), "error", errors)

    rewrite(job, 0, fail_all, failed=2, tokens=0)
    told = nothing_compared(job)
    assert "no row was computed again (3 rows read, 1 without a text, 2 with an error); expected at least one" in told
    assert "the column error in the shards says why" in told


def test_the_check_of_a_sample_says_how_many_rows_it_is_of(job: Job) -> None:
    assert verify("--sample", 3).exit_code == 0
    details = {check["name"]: check["detail"] for check in verdict(job)["checks"]}
    assert details["sample"] == "3 rows computed again, of 46 with a vector"


def test_shards_of_two_precisions_are_held_to_their_own_tolerances(job: Job) -> None:
    def half(table: pa.Table) -> pa.Table:
        vectors = table["embedding"].to_pylist()
        rounded = [None if vector is None else np.array(vector, np.float16).astype(float) for vector in vectors]
        return with_column(table, "embedding", pa.array(rounded, table.schema.field("embedding").type))

    rewrite(job, 1, half, precision="fp16")
    assert verify().exit_code == 0
    assert {check["name"] for check in verdict(job)["checks"]} >= {"fp16 vectors", "fp32 vectors"}
    assert set(verdict(job)["tolerance"]) == {"fp16", "fp32"}  # type: ignore[call-overload]
    for batch in (0, 1):  # a turn by an angle whose cosine FP16 allows and FP32 does not
        rewrite(job, batch, turned(2, 0.01))
    assert verify().exit_code == 1
    assert failing_rows(job) == [2]


def turned(place: int, angle: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        vector = np.array(table["embedding"][place].as_py())
        across = np.random.default_rng(0).normal(size=len(vector))
        across -= across @ vector / (vector @ vector) * vector
        across *= np.linalg.norm(vector) / np.linalg.norm(across)
        values = np.cos(angle) * vector + np.sin(angle) * across
        kind = table.schema.field("embedding").type.value_type.to_pandas_dtype()
        return with_value("embedding", place, values.astype(kind))(table)

    return change


def test_token_level_output(tiny_model: Path, tmp_path: Path) -> None:
    spec = build_engine(tiny_model, "tiny-tokens", pooling="tokens")
    job = finished_job(spec, save_texts(tmp_path / "texts", TEXTS))
    assert verify().exit_code == 0
    assert verdict(job)["total"]["vectors"] > 46 * 10  # type: ignore[index]
    tokens = pq.read_table(job.shard(0))["embedding"].to_pylist()

    broken = [list(vector) for vector in tokens[3]]
    broken[-1] = [-element for element in broken[-1]]
    rewrite(job, 0, lambda table: with_value("embedding", 5, tokens[5][:-1])(with_value("embedding", 3, broken)(table)))
    result = verify()
    assert result.exit_code == 1
    assert failing_rows(job) == [3, 5]
    assert f"row 5: {len(tokens[5]) - 1} × 32 elements, expected {len(tokens[5])} × 32" in result.stdout


def one_line(result: Result) -> str:
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_no_job(tmp_path: Path) -> None:
    assert "python -m producer" in one_line(verify())
    assert "no job in nowhere" in one_line(verify("nowhere"))
    (tmp_path / "output" / "broken").mkdir(parents=True)
    (tmp_path / "output" / "broken" / "job.json").write_text("{}")
    assert "is no job" in one_line(verify("broken"))


def test_what_the_job_was_made_from_is_gone_or_changed(
    job: Job, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_texts(dataset, [*TEXTS[:-1], "The last row!"])
    assert "was changed" in one_line(verify())
    dataset.rename(dataset.with_name("elsewhere"))
    assert "no dataset" in one_line(verify())
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(dataset))
    settings.cache_clear()
    assert "no engine tiny" in one_line(verify())
    assert not (job.folder / "verify.json").exists()  # nothing was judged


def test_a_changed_model(workplace: Path, dataset: Path) -> None:
    model = save_tiny_model(workplace / "changing")
    finished_job(build_engine(model, "changed"), dataset, limit=4)
    save_tiny_model(model, initializer_range=0.03)
    result = verify()
    assert result.stdout == ""
    assert "was changed" in one_line(result)


def test_rows_that_are_missing_are_reported_even_without_a_dataset(job: Job, dataset: Path) -> None:
    job.shard(1).unlink()
    dataset.rename(dataset.with_name("elsewhere"))
    result = verify()
    assert "no dataset" in one_line(result)
    assert f"Make the missing shards: python -m producer retry {job.folder}" in result.stdout
    assert failed(job) == {"shards", "rows", "reference"}


def test_a_verdict_that_cannot_be_written(job: Job) -> None:
    (job.folder / "verify.json").mkdir()
    result = verify("--sample", 2)
    assert "cannot be written" in one_line(result)
    assert {path.name for path in job.folder.iterdir()} <= {"job.json", "data", "staging", "verify.json"}


def test_options_out_of_range() -> None:
    for arguments in (("--sample", 0), ("--seed", -1)):
        assert verify(*arguments).exit_code == 2
