import json
from pathlib import Path

import pytest

from contract.engines import load_engine
from contract.settings import settings
from engine_build.options import engine_to_add_to
from tests.contract.samples import ENGINE_FIELDS, PLAN_FIELDS


def test_an_entry_that_cannot_be_used_is_one_line_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path))
    settings.cache_clear()
    file = tmp_path / "one" / "engine.json"
    file.parent.mkdir()
    file.write_text(json.dumps(ENGINE_FIELDS | {"plans": [PLAN_FIELDS, PLAN_FIELDS | {"sm": "Hopper"}]}))
    assert engine_to_add_to("one") == load_engine("one")
    told = capsys.readouterr().err
    assert told.startswith(f"{file} has an entry of plans that this version cannot use (sm: input should be a valid ")
    assert told.endswith("; build it on this machine: python -m engine_build plan --engine one\n")
    assert told.count("\n") == 1
