"""A module that is imported once something of it is called."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from contract.deferred import deferred
from contract.entry import uncollected


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that nothing has imported."""
    (tmp_path / "heavy_module.py").write_text("def double(number, *, more=0):\n    return 2 * number + more\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "heavy_module", raising=False)
    return "heavy_module"


def test_a_function_of_a_deferred_module_imports_it_when_it_is_called(heavy: str) -> None:
    with deferred(heavy):
        from heavy_module import double  # type: ignore[import-not-found]
    assert heavy not in sys.modules
    assert double(3, more=1) == 7
    assert heavy in sys.modules


def test_it_may_be_called_in_the_block_too(heavy: str) -> None:
    with deferred(heavy):
        from heavy_module import double

        assert double(4) == 8
        assert "__file__" in vars(sys.modules[heavy])


def test_a_submodule_is_one_of_the_real_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "heavy_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Kind, count\n\n\ndef double(n):\n    return 2 * n\n")
    (package / "inner.py").write_text("class Kind:\n    pass\n\n\ncount = [1]\ncount.append(2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with deferred("heavy_package"):
        from heavy_package import double  # type: ignore[import-not-found]
        from heavy_package.inner import Kind, count  # type: ignore[import-not-found]

        real = importlib.import_module("heavy_package")
        assert issubclass(type("Special", (Kind,), {}), real.Kind)
        assert count is real.inner.count
        assert count == [1, 2]
        assert (real.inner, real.inner.__spec__.origin) == (sys.modules[real.inner.__name__], real.inner.__file__)
    assert double(4) == 8
    assert not [finder for finder in sys.meta_path if type(finder).__module__ == "contract.deferred"]


def test_what_other_packages_import_of_scikit_learn_and_scipy_is_not_disturbed() -> None:
    """Releases of transformers and sentence-transformers differ in what they import at their start."""
    program = (
        "from contract.entry import uncollected\n"
        "with uncollected():\n"
        "    from sklearn.metrics import pairwise_distances\n"
        "    import scipy.optimize, scipy.stats, sklearn.cluster, sklearn.model_selection, sklearn.metrics.pairwise\n"
        "print(pairwise_distances([[0.0], [2.0]])[0, 1], sklearn.metrics.pairwise.cosine_distances([[1.0]], [[1.0]]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (ran.stdout, ran.stderr) == ("2.0 [[0.]]\n", "")


def test_a_module_that_is_there_is_left_alone(heavy: str) -> None:
    import heavy_module

    with deferred(heavy):
        assert sys.modules[heavy] is heavy_module
    assert sys.modules[heavy] is heavy_module


def test_after_the_block_the_module_is_the_real_one(heavy: str) -> None:
    with deferred(heavy):
        pass
    import heavy_module

    assert heavy_module.double(2) == 4
    with pytest.raises(AttributeError), deferred("heavier_module"):
        sys.modules["heavier_module"].__file__  # noqa: B018 - libraries look whether a module has it


def test_commands_import_sentence_transformers_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sklearn.metrics", raising=False)
    with uncollected():
        # As sentence_transformers.util.similarity does.
        from sklearn.metrics import pairwise_distances  # type: ignore[import-untyped]
    assert pairwise_distances.__module__ == "contract.deferred"
