"""What is compiled is kept in one file, and put where it is looked for."""

import os
from pathlib import Path

import pytest
import torch

from contract.plan import PackedProfile
from worker.runtime.compiled import Compiled
from worker.runtime.flash import faster_lengths, flash_attention_4, kept_kernels, lacking, restore_kernels


def test_kernels_and_graphs_come_back_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled = Compiled(os.urandom(3000), {"abc/forward/1.o": os.urandom(100), "abc/forward/2.o": b""})
    again = Compiled.from_bytes(compiled.to_bytes())
    assert again == compiled
    assert kept_kernels() == {}
    restore_kernels(again.kernels)
    assert kept_kernels() == compiled.kernels


def test_without_the_package_nothing_is_measured_and_it_is_said_why() -> None:
    if not lacking():
        pytest.skip("flash-attn-4 is installed")
    profiles = [PackedProfile(66, 33792)]
    assert faster_lengths(profiles, 512, 12, 64, torch.device("cuda")) == ((), "no Python package flash-attn-4")


def test_a_graph_with_flash_attention_4_is_traced_without_it() -> None:
    def layer(query: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return flash_attention_4(query, query, query, ends, 4, None, [-1, -1]) * 2

    with torch._subclasses.FakeTensorMode():
        query = torch.empty(8, 3, 2, 16, dtype=torch.float16)[:, 0]
        made = layer(query, torch.empty(3, dtype=torch.int32))
    assert made.shape == query.shape
    assert made.is_contiguous()
