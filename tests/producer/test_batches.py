from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.tokens import TokenRows
from producer.batches import batch_of
from producer.dataset import open_dataset
from producer.texts import DatasetSource
from producer.tokenizer import RowTokenizer, open_tokenizer, tokenize, tokenizer_from
from tests.conftest import JARGON, MINILM
from tests.contract.samples import FINGERPRINT, a_job
from tests.producer.test_dataset import ODD, all_texts

ODD_TEXTS = [text for text in ODD.values() if text is not None] + ["[SEP] [PAD] [CLS]", "Ünïcödé 日本語", "a" * 300]


def assert_as_transformers(
    texts: Sequence[str], rows: RowTokenizer, reference: transformers.PreTrainedTokenizerBase, prefix: str = ""
) -> None:
    tokens, n_tokens = tokenize(texts, rows, prefix)
    found = tokens.padded(rows.length, rows.pad_id)
    prefixed = [prefix + text for text in texts]
    expected = reference(
        prefixed, truncation=True, padding="max_length", max_length=rows.length, return_tensors="np", verbose=False
    )
    np.testing.assert_array_equal(found["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(found["attention_mask"], expected["attention_mask"])
    whole = reference(prefixed, truncation=False, verbose=False)["input_ids"]
    assert n_tokens.tolist() == [len(ids) for ids in whole]
    assert {array.dtype for array in (tokens.ids, tokens.lengths, n_tokens)} == {np.dtype(np.int32)}


def as_lists(tokenized: tuple[TokenRows, npt.NDArray[np.int32]]) -> list[list[int]]:
    tokens, n_tokens = tokenized
    return [tokens.ids.tolist(), tokens.lengths.tolist(), n_tokens.tolist()]


def test_minilm_tokens_are_those_of_transformers(minilm: EngineSpec) -> None:
    texts = [text or "" for text in all_texts(open_dataset(DatasetSource(str(JARGON))))]
    chosen = [*texts[::40], *sorted(texts, key=len)[-20:]]
    reference = transformers.AutoTokenizer.from_pretrained(MINILM)
    assert_as_transformers([*chosen, *ODD_TEXTS], open_tokenizer(minilm), reference)
    assert_as_transformers(chosen, open_tokenizer(minilm), reference, prefix="passage: ")


def _roberta(words: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def _template(words: list[str], template: str) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(words, WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False))
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


@pytest.mark.parametrize("style", ["roberta", "<s> $A </s> </s>", "<s> $A", "$A </s>", "$A"])
@pytest.mark.parametrize("length", [5, 16, 64])
def test_special_tokens_at_the_end_survive_truncation(style: str, length: int, tmp_path: Path) -> None:
    words = JARGON.read_text(encoding="utf-8").splitlines()[:50]
    tokenizer = _roberta(words) if style == "roberta" else _template(words, style)
    tokenizer.enable_truncation(7)  # a file's own truncation and padding are not taken over
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    texts = ["", "a", "one two three", *words[:10], *(text for text in ODD_TEXTS if len(text) < 1000)]
    assert_as_transformers(texts, tokenizer_from(tmp_path / "tokenizer.json", length, 1), reference)


def test_a_row_without_a_text_has_no_token_and_an_empty_text_has_its_special_ones(tiny: EngineSpec) -> None:
    tokens, n_tokens = tokenize([None, "", "mill", None], open_tokenizer(tiny), "never a row of its own: ")
    assert n_tokens[[0, 3]].tolist() == [0, 0]
    assert tokens.lengths.tolist() == n_tokens.tolist()
    tokens, n_tokens = tokenize(["", None], open_tokenizer(tiny))
    assert n_tokens.tolist() == tokens.lengths.tolist() == [2, 0]
    assert tokens.ids.tolist() == [2, 3]


@pytest.mark.parametrize("texts", [[], [None], [None, None]])
def test_rows_may_all_be_without_a_text(texts: list[None], tiny: EngineSpec) -> None:
    tokens, n_tokens = tokenize(texts, open_tokenizer(tiny))
    assert (len(tokens.ids), tokens.lengths.tolist(), n_tokens.tolist()) == (0, [0] * len(texts), [0] * len(texts))


def test_half_of_a_surrogate_pair_is_a_question_mark(tiny: EngineSpec) -> None:
    rows = open_tokenizer(tiny)
    found, expected = tokenize(["a\ud800b \udfff", "ok"], rows), tokenize(["a?b ?", "ok"], rows)
    assert as_lists(found) == as_lists(expected)


def test_a_changed_tokenizer_is_refused(tiny: EngineSpec) -> None:
    with pytest.raises(UserError, match="SHA-256"):
        open_tokenizer(tiny.model_copy(update={"tokenizer_sha256": "another"}))


def test_a_batch_is_its_slice_of_the_dataset(tiny: EngineSpec, tmp_path: Path) -> None:
    job = a_job(tmp_path, prefix="of ", rows=6, batch_rows=4)
    rows = open_tokenizer(tiny)
    batch = batch_of(job, 1, ["a mill", None], rows)
    assert (batch.job, batch.number, batch.engine) == (job.id, 1, FINGERPRINT)
    assert batch.row_id.tolist() == [4, 5]
    assert as_lists((batch.tokens, batch.n_tokens)) == as_lists(tokenize(["a mill", None], rows, "of "))


def test_a_blank_text_is_none_in_a_batch_whatever_the_prefix(tiny: EngineSpec, tmp_path: Path) -> None:
    job = a_job(tmp_path, prefix="of ", rows=5, batch_rows=5)
    kept = {"text": pa.array(["", " \u2028", None, "\u200b", " a "])}
    batch = batch_of(job, 0, kept["text"].to_pylist(), open_tokenizer(tiny), kept)
    assert [bool(count) for count in batch.n_tokens] == [bool(count) for count in batch.lengths]
    assert [bool(count) for count in batch.n_tokens] == [False, False, False, True, True]
    assert batch.kept["text"].equals(kept["text"])


def test_a_batch_does_not_depend_on_its_neighbours(tiny: EngineSpec) -> None:
    rows = open_tokenizer(tiny)
    texts = ["short", "a much longer text " * 200, None, "another"]
    tokens, n_tokens = tokenize(texts, rows)
    for place, text in enumerate(texts):
        alone = tokens.take(np.array([place])), n_tokens[[place]]
        assert as_lists(alone) == as_lists(tokenize([text], rows))
