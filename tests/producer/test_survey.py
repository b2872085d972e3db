"""What a sample says of all rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.engine import EngineSpec
from contract.store import location
from producer.batches import Work
from producer.dataset import open_dataset
from producer.request import JobRequest, resolve
from producer.survey import survey
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer, tokenize


def work_of(spec: EngineSpec, folder: Path, texts: list[str | None], **options: object) -> Work:
    file = folder / "texts.parquet"
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), file)
    source, tokenizer = DatasetSource(str(file)), open_tokenizer(spec)
    opened = open_dataset(source)
    request = JobRequest(source, location(folder / "output"), batch_rows=64, **options)  # type: ignore[arg-type]
    return Work(resolve(request, opened, spec, tokenizer), opened, tokenizer)


def test_of_a_small_dataset_every_row_is_read(tiny: EngineSpec, tmp_path: Path) -> None:
    texts = ["good", None, "bad " * 1000, " \t ", "not so good", "bad " * 2000]
    found = survey(work_of(tiny, tmp_path, texts))
    made, n_tokens = tokenize(["good", "bad " * 1000, "not so good", "bad " * 2000], open_tokenizer(tiny))
    assert (found.rows, found.read) == (6, 6)
    assert found.tokens == (made.lengths.sum(), 0)
    assert (found.truncated.value, found.without_text.value) == (2, 2)
    assert [(one.row, one.tokens) for one in found.longest] == [(5, n_tokens[3]), (2, n_tokens[1]), (4, n_tokens[2])]
    assert survey(work_of(tiny, tmp_path, texts, limit=2)).rows == 2


def test_windows_count_with_all_of_their_tokens(tiny: EngineSpec, tmp_path: Path) -> None:
    found = survey(work_of(tiny, tmp_path, ["bad " * 1000], long_texts="window", overlap=0))
    assert found.tokens.value >= 1000
    assert found.truncated == (0, 0)


@pytest.mark.parametrize("sorted_by_length", [False, True])
def test_the_error_holds_what_it_says(sorted_by_length: bool, tiny: EngineSpec, tmp_path: Path) -> None:
    """20,000 rows of lengths as reviews have them, also where all long ones are at the end."""
    lengths = np.random.default_rng(0).lognormal(3, 1, 20_000).astype(int) % 400
    if sorted_by_length:
        lengths.sort()
    work = work_of(tiny, tmp_path, ["good " * length or None for length in lengths])
    found = survey(work)
    window = work.tokenizer.window
    real = sum(min(length, window) + work.tokenizer.special for length in lengths.tolist() if length)
    assert found.read < 20_000
    assert 0 < found.tokens.error < 0.03 * real
    assert abs(found.tokens.value - real) <= 2 * found.tokens.error
    assert abs(found.truncated.value - int((lengths > window).sum())) <= 2 * found.truncated.error
    assert abs(found.without_text.value - int((lengths == 0).sum())) <= 2 * found.without_text.error + 1
