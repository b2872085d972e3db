"""Commands in processes that can import what one extra brings, and nothing else that happens to be installed."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from contract.engine import EngineSpec, engine_folder
from embedmill.processes import celery_worker
from tests.conftest import JARGON

PROGRAM = """
import json, os, re, sys
from importlib.machinery import PathFinder

with open(os.environ["MISSING"]) as file:
    MISSING, DISTRIBUTIONS = map(frozenset, json.load(file))


class Installed(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if path is None and fullname in MISSING else super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *arguments, **options):
        for one in super().find_distributions(*arguments, **options):
            if re.sub("[-_.]+", "-", one.metadata["Name"]).lower() not in DISTRIBUTIONS:
                yield one


sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
"""
"""Python runs a module of the name sitecustomize when it starts."""


def distributions(*extras: str) -> set[str]:
    """The distributions that ``pip install embedmill[EXTRAS]`` brings, of those that are installed here."""
    to_see = [("embedmill", extra) for extra in ("", *extras)]
    seen = set(to_see)
    while to_see:
        name, extra = to_see.pop()
        with contextlib.suppress(PackageNotFoundError):  # such as tensorrt
            for needs in map(Requirement, requires(name) or ()):
                if needs.marker is None or needs.marker.evaluate({"extra": extra}):
                    new = {(canonicalize_name(needs.name), one) for one in ("", *needs.extras)} - seen
                    to_see += new
                    seen |= new
    return {name for name, _ in seen}


@pytest.fixture
def with_only(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of processes that have some extras alone."""

    def environment(*extras: str) -> dict[str, str]:
        there = distributions(*extras)
        modules = {
            module: {canonicalize_name(name) for name in names} for module, names in packages_distributions().items()
        }
        missing = [module for module, names in modules.items() if not there & names]
        others = sorted(set().union(*modules.values()) - there)
        folder = tmp_path / "-".join(("only", *extras))
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(PROGRAM)
        (folder / "missing.json").write_text(json.dumps([missing, others]))
        return {"PYTHONPATH": str(folder), "MISSING": str(folder / "missing.json")}

    return environment


def run(env: dict[str, str], *arguments: object, expect: int = 0) -> str:
    """``python -m`` these words; returns what it printed."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ | env)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_nothing_else_can_be_imported(with_only: Callable[..., dict[str, str]]) -> None:
    program = "import redis, importlib.util as u; print(*[bool(u.find_spec(n)) for n in ('torch', 'onnxruntime')])"
    for extras, there in (((), "False False"), (("cpu",), "False True"), (("build",), "True True")):
        command = [sys.executable, "-c", program]
        assert subprocess.check_output(command, text=True, env=os.environ | with_only(*extras)).strip() == there


@pytest.mark.slow
def test_a_job_by_processes_that_have_their_extra_alone(
    tiny: EngineSpec, redis_url: str, tmp_path: Path, with_only: Callable[..., dict[str, str]]
) -> None:
    base, output = with_only(), tmp_path / "output"
    with celery_worker(tmp_path / "worker.log", env=with_only("cpu")):
        produce = ("--dataset", JARGON, "--engine", tiny.name, "--output", output, "--limit", 200)
        assert "200 rows" in run(with_only("producer"), "producer", *produce)
    (job,) = output.iterdir()
    assert job.name in run(base | {"EMBEDMILL_OUTPUT": str(output)}, "embedmill", "list")
    assert job.name in run(base, "embedmill", "status", job)
    assert "Verified: 200 rows" in run(with_only("build"), "verify", job, "--sample", 20)
    target = tmp_path / "index"
    assert "200" in run(with_only("faiss"), "embedmill", "export", job, "--to", f"faiss:{target}")


def test_the_machine_of_a_gpu_needs_no_packages_of_other_machines(
    tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_only: Callable[..., dict[str, str]]
) -> None:
    shutil.copytree(engine_folder(tiny.name), tmp_path / "engines" / tiny.name)
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    profile = ("--padded", "--profile", "1x1-512", "--compute-capability", "8.6")
    assert "plans/" in run(with_only("rtx"), "engine_build", "plan", "--engine", tiny.name, *profile)
    for extra, command in (("gpu", "plan"), ("torch", "compile")):
        told = run(with_only(extra), "engine_build", command, expect=1)
        assert "GPU" in told
        assert "install what it needs" not in told
    told = run(with_only("gpu"), "engine_build", "tune", "--seconds", "0.1")
    assert "torch is left out: no Python package torch" in told
    assert re.search(r"onnxruntime .* yes", told)
