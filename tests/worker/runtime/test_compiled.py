"""What is compiled is kept in one file, and put where it is looked for."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from contract.plan import PackedProfile
from worker.runtime.compiled import Compiled
from worker.runtime.flash import (
    KERNELS,
    Times,
    faster_than_own,
    fastest_kernels,
    flash_attention,
    kept_kernels,
    lacking,
    restore_kernels,
    row_ends,
)
from worker.runtime.torch_gpu import profiles

CPU = torch.device("cpu")


def test_kernels_and_graphs_come_back_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled = Compiled(os.urandom(3000), {"abc/forward/1.o": os.urandom(100), "abc/forward/2.o": b""})
    again = Compiled.from_bytes(compiled.to_bytes())
    assert again == compiled
    assert kept_kernels() == {}
    restore_kernels(again.kernels)
    assert kept_kernels() == compiled.kernels


PROFILES = [PackedProfile(66, 33792, 512)]


def test_without_the_packages_nothing_is_measured_and_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("flash_attn_interface", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, module, None)
    why = "flash_attention_3: no Python package flash-attn-3; flash_attention_4: no Python package flash-attn-4"
    assert fastest_kernels(PROFILES, 12, 64, CPU) == ({}, why)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that is imported as flash-attn-3, installed or not."""
    monkeypatch.delitem(sys.modules, "flash_attn_interface", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "flash_attn_interface.py"
    sys.modules.pop("flash_attn_interface", None)


def test_a_package_that_cannot_be_imported_is_said_and_not_used(package: Path) -> None:
    package.write_text("raise ImportError('libcudart.so.12: cannot open it')")
    lacks = lacking("flash_attention_3")
    assert lacks == "a Python package flash-attn-3 that cannot be imported (libcudart.so.12: cannot open it)"
    assert f"flash_attention_3: {lacks}" in fastest_kernels(PROFILES, 12, 64, CPU)[1]


def test_a_kernel_that_does_not_compute_is_said_and_not_used(package: Path) -> None:
    package.write_text("def flash_attn_varlen_func(*_, **__): raise RuntimeError('no')")
    found, told = fastest_kernels(PROFILES, 12, 64, CPU)
    assert found == {}
    assert "flash_attention_3: it does not compute this model: no" in told


def test_the_fastest_kernel_is_taken_if_it_is_three_percent_faster_than_pytorchs_own() -> None:
    times: Times = {
        None: {"132x33792": 236, "528x33792": 218, "2112x33792": 298, "132x2112": 51},
        "flash_attention_3": {"132x33792": 181, "528x33792": 190, "2112x33792": 413, "132x2112": 50},
        "flash_attention_4": {"132x33792": 232, "528x33792": 180, "2112x33792": 683, "132x2112": 61},
    }
    assert faster_than_own(times) == {"132x33792": "flash_attention_3", "528x33792": "flash_attention_4"}


@pytest.mark.parametrize("max_length", [3, 128, 512, 8192])
def test_it_is_measured_on_rows_that_fill_a_profile_as_a_batchs_do(max_length: int) -> None:
    for profile in profiles(max_length, 132):
        assert profile.longest
        lengths = row_ends(profile).diff()
        assert len(lengths) == profile.input_rows(profile.longest)
        assert lengths.sum() == profile.tokens
        assert 0 <= lengths.min() <= lengths.max() <= profile.longest
        filled = int((lengths > 0).sum())
        assert filled <= profile.rows + 1 + profile.tokens // profile.longest
        assert filled >= profile.rows // 3


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_graph_with_flash_attention_is_traced_without_it(kernel: str) -> None:
    def layer(query: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return flash_attention(query, query, query, ends, 4, None, [-1, -1], kernel) * 2

    with torch._subclasses.FakeTensorMode():
        query = torch.empty(8, 3, 2, 16, dtype=torch.float16)[:, 0]
        made = layer(query, torch.empty(3, dtype=torch.int32))
    assert made.shape == query.shape
    assert made.is_contiguous()
