"""Two jobs of the same rows: other forms, other engines, other rows."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from contract.engine import EngineSpec
from contract.engines import engine_of
from contract.form import VectorForm
from contract.job import Job
from contract.shard import open_file
from tests.conftest import build_engine
from tests.verify.jobs import TEXTS, finished_job, rewrite, save_texts, with_column, with_value
from verify.compare import main
from verify.compare_jobs import NEAREST

RANGES = ((-1.0,) * 32, (1.0,) * 32)
FORMS = {
    "float16": VectorForm(dtype="float16"),
    "int8": VectorForm(dtype="int8", ranges=RANGES),
    "binary": VectorForm(dtype="binary"),
    "few": VectorForm(dimensions=8),
}


def compare(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def figures(left: Job, right: Job) -> dict[str, object]:
    found: dict[str, object] = json.loads((right.folder / f"compare-{left.id}.json").read_bytes())
    return found


def vectors(job: Job) -> dict[int, np.ndarray]:
    """Row → its vector, to compute with."""
    found: dict[int, np.ndarray] = {}
    for batch in range(job.batches):
        with open_file(job.shard(batch)) as file:
            table = file.read()
        for row, values in zip(table["row_id"].to_pylist(), table["embedding"].to_pylist(), strict=True):
            if values is not None:
                elements = job.form.elements(engine_of(job).hidden)
                stored = np.array(values, job.form.element.to_pandas_dtype())[None]
                found[row] = job.form.dequantized(stored, elements)[0].astype(np.float64)
    return found


def expected_overlap(left: Job, right: Job) -> float:
    """The same by plain loops over all pairs."""
    both = [vectors(left), vectors(right)]
    rows = sorted(both[0].keys() & both[1].keys())
    shares = []
    for row in rows:
        near = []
        for side in both:
            cosines = {
                other: side[row] @ side[other] / np.linalg.norm(side[row]) / np.linalg.norm(side[other])
                for other in rows
                if other != row
            }
            near.append(set(sorted(cosines, key=lambda other: (-round(cosines[other], 6), other))[:NEAREST]))
        shares.append(len(near[0] & near[1]) / NEAREST)
    return float(np.mean(shares))


@pytest.mark.parametrize("name", FORMS)
def test_a_form_keeps_as_many_neighbours_as_plain_loops_find(
    name: str, job: Job, tiny: EngineSpec, dataset: Path
) -> None:
    other = finished_job(tiny, dataset, batch_rows=7, form=FORMS[name])
    done = compare(job.folder, other.folder, "--least", "0", "--sample", "all")
    assert done.exit_code == 0, done.output
    found = figures(job, other)
    assert found["overlap"] == pytest.approx(expected_overlap(job, other), abs=0.02)  # equals, to a rounding
    assert (found["rows"], found["compared"], found["only_left"], found["overlap_error"]) == (48, 46, 0, 0)
    assert (found["cosines"] is None) == (name == "few")
    page = (other.folder / f"compare-{job.id}.html").read_text()
    assert page.count("<svg") == (1 if name == "few" else 2)


def test_a_job_keeps_all_of_its_own_copys_neighbours(job: Job, tiny: EngineSpec, dataset: Path) -> None:
    copy = finished_job(tiny, dataset, batch_rows=48)
    done = compare(job.folder, copy.folder, "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["overlap"], found["first_kept"], found["worst"], found["passed"]) == (
        0,
        1,
        1,
        [],
        True,
    )
    assert found["cosines"]["lowest"] == pytest.approx(1, abs=1e-6)
    assert found == figures(job, copy)


def test_neighbours_at_the_same_distance_but_for_noise_may_change_places(job: Job, tiny: EngineSpec) -> None:
    """Five groups of 30 equal texts: the vectors of a group are equal up to noise, which is another in the copy."""
    texts = save_texts(Path("groups"), [f"{'spam and ' * (row // 30)}eggs" for row in range(150)])
    left, right = (finished_job(tiny, texts, batch_rows=size) for size in (150, 149))
    chance = np.random.default_rng(3)

    def noisy(table: pa.Table) -> pa.Table:
        kind = table.schema.field("embedding").type
        rows = np.stack(table["embedding"].to_numpy())
        rows = rows * (1 + chance.normal(size=rows.shape) * 1e-7)
        return with_column(table, "embedding", pa.array(list(rows.astype(np.float32)), kind))

    rewrite(right, 0, noisy)
    assert compare(left.folder, right.folder, "--sample", "all").exit_code == 0
    found = figures(left, right)
    assert (found["overlap"], found["first_kept"], found["worst"]) == (1, 1, [])


def test_a_changed_vector_is_the_row_that_differs_most(job: Job, tiny: EngineSpec, dataset: Path) -> None:
    other = finished_job(tiny, dataset, batch_rows=12)
    opposite = (-vectors(other)[3]).tolist()
    rewrite(other, 0, with_value("embedding", 3, opposite))
    done = compare(job.folder, other.folder)
    worst = figures(job, other)["worst"]
    assert isinstance(worst, list)
    assert worst[0]["row"] == 3
    assert worst[0]["cosine"] == pytest.approx(-1)
    assert " ".join(str(TEXTS[3]).split())[:40] in done.stdout.replace("\n", " ") + worst[0]["text"]
    assert worst[0]["lost"]["row"] != worst[0]["gained"]["row"]


def test_the_exit_status_tells_whether_enough_is_kept(job: Job, tiny_model: Path, dataset: Path) -> None:
    other = finished_job(build_engine(tiny_model, "first-token", pooling="cls"), dataset)
    done = compare(job.folder, other.folder, "--least", "1")
    assert done.exit_code == 1
    assert "100 % were asked for" in done.stdout
    assert compare(job.folder, other.folder, "--least", "0.01").exit_code == 0


def _of_other_texts(spec: EngineSpec, dataset: Path) -> Job:
    return finished_job(spec, save_texts(dataset.parent / "others", [*TEXTS[:-1], "Another last row."]))


def _of_fewer_rows(spec: EngineSpec, dataset: Path) -> Job:
    return finished_job(spec, dataset, limit=20)


def _unfinished(spec: EngineSpec, dataset: Path) -> Job:
    made = finished_job(spec, dataset, batch_rows=5)
    made.shard(2).unlink()
    return made


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (_of_other_texts, "are of other texts .1 of 48 rows looked at, the first is row 47."),
        (_of_fewer_rows, "has 48 rows and .* has 20"),
        (_unfinished, "1 shard of .* missing"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    make: Callable[[EngineSpec, Path], Job], line: str, job: Job, tiny: EngineSpec, dataset: Path
) -> None:
    done = compare(job.folder, make(tiny, dataset).folder)
    assert done.exit_code == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("Error: ")
    assert re.search(line, said), said


def test_a_job_is_not_compared_with_itself(job: Job) -> None:
    assert "are the same job; give two" in compare(job.folder, job.id).stderr
