"""A small seeded model with a real tokenizer, for where the vectors' meaning does not matter."""

import functools
from pathlib import Path

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer

JARGON = Path(__file__).resolve().parent.parent / "examples" / "jargon.jsonl"

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""By the names that transformers has for them."""


def save_tiny_model(folder: Path, model_type: str = "bert", vocabulary: int = 1000, **config: object) -> Path:
    """A seeded two-layer encoder of any type that transformers knows, 32 wide, with a WordPiece tokenizer.

    Args:
        folder: to write it to.
        model_type: as transformers names it.
        vocabulary: most entries of the tokenizer's vocabulary, which is trained on the Jargon File.
        config: what is to differ from that.
    """
    save_tiny_tokenizer(folder, vocabulary)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": vocabulary,
    }
    if model_type == "distilbert":
        shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": vocabulary}
    transformers.set_seed(7)
    settings = transformers.AutoConfig.for_model(model_type, **(shape | {"pad_token_id": 0} | config))
    transformers.AutoModel.from_config(settings).save_pretrained(folder)
    return folder


def save_tiny_tokenizer(folder: Path, vocabulary: int, padding_side: str = "right") -> None:
    """A WordPiece tokenizer of at most so many entries, trained on the Jargon File."""
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=_trained(vocabulary),  # which it copies
        **SPECIAL_TOKENS,
        padding_side=padding_side,
    ).save_pretrained(folder)


@functools.cache
def _trained(vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    lines = JARGON.read_text(encoding="utf-8").splitlines()[: vocabulary * 3 // 10]
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL_TOKENS.values()), show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def save_bert_base(folder: Path) -> Path:
    """An encoder of ``bert-base-cased``'s shape with seeded weights, for speed where the Hub cannot be reached."""
    return save_tiny_model(
        folder,
        vocabulary=28_996,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
