"""What the tree promises: who imports whom, and what a worker must not need."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("contract", "engine_build", "producer", "worker", "verify", "embedmill")
ALLOWED = {
    "contract": set(),
    # A plan is built and timed for the runtime that runs it.
    "engine_build": {
        "contract",
        "producer.tokenizer",  # the export is checked with rows as the producer makes them
        "worker.runtime",
    },
    "producer": {"contract"},
    "worker": {"contract"},
    # The dataset as the producer reads it, to compare with, and which files it is made of; no reader of the producer's.
    "verify": {"contract", "producer.dataset", "producer.files", "producer.remote", "producer.texts"},
    # The command over all of them.
    "embedmill": {"contract", "engine_build", "producer", "worker", "verify"},
}


def imports(folder: Path) -> set[str]:
    """The modules of this project that the files in a folder import."""
    found: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    allowed = tuple(f"{name}." for name in ALLOWED[package])
    assert not {name for name in imports(ROOT / package) if not f"{name}.".startswith((f"{package}.", *allowed))}


def test_the_runtime_knows_nothing_of_the_worker() -> None:
    names = imports(ROOT / "worker" / "runtime")
    assert not {name for name in names if not f"{name}.".startswith(("contract.", "worker.runtime."))}


def modules() -> dict[str, Path]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports inside functions count too."""
    files = modules()
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        needs = graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                needs |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                needs |= (parts & files.keys()) or {node.module}
    graphlib.TopologicalSorter({name: needs & files.keys() - {name} for name, needs in graph.items()}).prepare()


GPU_LIBRARIES = ("tensorrt", "tensorrt_rtx", "pycuda", "cuda")


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("worker.celery", ("torch", "transformers", "datasets", "tokenizers", "onnx", *GPU_LIBRARIES)),
        ("engine_build.command", ("torch", "transformers", "onnx", "onnxruntime", "matplotlib", *GPU_LIBRARIES)),
        ("producer.command", ("torch", "transformers", "onnx", "onnxruntime", "datasets", "pandas", "huggingface_hub")),
        ("verify.command", ("torch", "transformers", "sentence_transformers", "datasets", "matplotlib")),
        (
            "embedmill.embed_command",
            ("torch", "transformers", "onnx", "onnxruntime", "matplotlib", "datasets", "celery"),
        ),
        ("embedmill.export.command", ("torch", "transformers", "datasets", "lance", "faiss", "psycopg")),
        ("contract.redis.ledger", ("torch", "transformers", "datasets", "celery", "onnxruntime")),
    ],
)
def test_an_entry_point_imports_nothing_large_that_it_may_not_need(module: str, unneeded: tuple[str, ...]) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({unneeded!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_worker_package_is_free() -> None:
    code = "import worker, sys; assert 'celery' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert set(included) == {f"{package}*" for package in PACKAGES}
    folders = {file.parent for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
