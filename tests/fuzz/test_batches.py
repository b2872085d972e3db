"""Random texts become batches whose rows, widths and bytes are what a second, plain implementation makes of them.

EMBEDMILL_FUZZ=100000 draws that many jobs in place of 200.
"""

import hashlib
import os
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from contract.batch import Batch
from contract.job import Job
from producer.batches import batch_of
from producer.tokenizer import RowTokenizer, tokenizer_from
from tests.contract.samples import a_job
from worker.runtime.microbatch import cut_by_budget, cut_end_to_end

JOBS, SEEDS = int(os.environ.get("EMBEDMILL_FUZZ", "200")), 4
WORDS = 50
LENGTHS = (3, 16, 511, 512, 513, 600, 1024, 8192, 32_768)
CLS, SEP, PAD = WORDS, WORDS + 1, WORDS + 2


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a token for each word: w0 is 0, w1 is 1, …; a row is [CLS] … [SEP]."""
    vocabulary = {f"w{number}": number for number in range(WORDS)} | {"[CLS]": CLS, "[SEP]": SEP, "[PAD]": PAD, "a": 53}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


class Drawn(NamedTuple):
    """A job's texts, as their words' numbers; None for a row without a text."""

    max_length: int
    overlap: int | None
    batch_rows: int
    texts: list[list[int] | None]


def drawn(random: random.Random) -> Drawn:
    max_length = random.choice(LENGTHS)
    overlap = random.choice([None, 0, random.randrange(max_length - 2)]) if max_length > 3 else None
    texts: list[list[int] | None] = []
    for _ in range(random.choice([1, 4, 12, 40])):
        most = random.choice([3, 40, 520, min(2 * max_length, 20_000)])
        if overlap is not None:
            most = min(most, 40 * (max_length - 2 - overlap))  # so that no text has thousands of windows
        words = random.randrange(1, most + 1)
        texts.append(None if random.random() < 0.1 else random.choices(range(WORDS), k=words))
    return Drawn(max_length, overlap, random.choice([1, 3, 40]), texts)


def expected(one: Drawn, batch: int) -> list[tuple[int, list[int], int]]:
    """Row id, token ids and ``n_tokens`` of each row of a batch, word by word. A text that came before has none."""
    rows: list[tuple[int, list[int], int]] = []
    fit = one.max_length - 2
    first = batch * one.batch_rows
    for row in range(first, min(len(one.texts), first + one.batch_rows)):
        words = one.texts[row]
        if words is None or words in one.texts[first:row]:
            rows.append((row, [], 0))
            continue
        begin = 0
        while True:
            rows.append((row, [CLS, *words[begin : begin + fit], SEP], len(words) + 2))
            if one.overlap is None or begin + fit >= len(words):
                break
            begin += fit - one.overlap
    return rows


def expected_width(one: Drawn, rows: list[tuple[int, list[int], int]]) -> int:
    """The narrowest multiple of 128 that takes every row, or the engine's length where that is less, or at most 512. 1
    where no row has a token."""
    if not any(ids for _, ids, _ in rows):
        return 1
    if one.max_length in range(513):
        return one.max_length
    for candidate in range(128, one.max_length, 128):
        if all(len(ids) <= candidate for _, ids, _ in rows):
            return candidate
    return one.max_length


def matrices(payload: bytes) -> tuple[int, list[tuple[int, list[int], int]], list[int], dict[int, bytes]]:
    """Width, rows, each record batch's token ids, padding included, and each row's hash, read from Arrow as the format
    says."""
    with pa.ipc.open_stream(payload) as stream:
        records = list(stream)
    rows, hashes = [], {}
    for record in records:
        found = record.to_pydict()
        for row, ids, mask, types, n_tokens, text_hash, *origin in zip(
            *(found[name] for name in record.schema.names), strict=True
        ):
            hashes[row] = text_hash
            assert len(origin) == 3
            real = sum(mask)
            assert mask == [1] * real + [0] * (len(mask) - real)
            assert set(ids[real:]) <= {PAD}
            assert not any(types)
            rows.append((row, ids[:real], n_tokens))
    width = records[0].schema.field("input_ids").type.list_size
    return width, rows, [len(record) * width for record in records], hashes


def check(one: Drawn, rows: RowTokenizer, job: Job) -> None:
    seen: list[int] = []
    for number in range(job.batches):
        within = job.row_range(number)
        texts = [words and " ".join(f"w{word}" for word in words) for words in one.texts[within.start : within.stop]]
        batch = batch_of(job, number, [text or None for text in texts], rows)
        payload = batch.to_bytes(rows.length, rows.pad_id)
        assert payload == batch_of(job, number, [text or None for text in texts], rows).to_bytes(rows.length, PAD)
        due = expected(one, number)
        width, found, cells, hashes = matrices(payload)
        for row, text in zip(within, texts, strict=True):
            assert hashes[row] == (hashlib.sha256(text.encode()).digest()[:16] if text else bytes(16))
        assert (width, found) == (expected_width(one, due), due)
        assert max(cells) <= max(2**19, width)
        again = Batch.from_bytes(payload)
        ids = np.split(again.tokens.ids, np.cumsum(again.lengths)[:-1])
        assert [(int(row), part.tolist(), int(n)) for row, part, n in zip(again.row_id, ids, again.n_tokens)] == due  # noqa: B905
        for cut in (cut_end_to_end(again.lengths, 4096), cut_by_budget(again.lengths, 4096, 1 << 22)):
            assert sorted(row for micro in cut for row in micro.rows) == np.flatnonzero(again.lengths).tolist()
            assert all(micro.tokens <= 4096 or len(micro.rows) == 1 for micro in cut)
        seen += [row for row, _, _ in due]
    assert list(dict.fromkeys(seen)) == list(range(len(one.texts)))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_batches_are_what_the_format_says(seed: int, file: Path, tmp_path: Path) -> None:
    generator = random.Random(seed)
    for _ in range(JOBS // SEEDS):
        one = drawn(generator)
        job = a_job(tmp_path, rows=len(one.texts), batch_rows=one.batch_rows, overlap=one.overlap)
        check(one, tokenizer_from(file, one.max_length, PAD), job)
