import hashlib
import json
from pathlib import Path

import pytest

from contract.engine import EngineSpec, engine_folder, load_engine
from contract.errors import UserError
from contract.settings import settings
from tests.contract.samples import ENGINE_FIELDS


@pytest.fixture(autouse=True)
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engines folder of this test's own."""
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    settings.cache_clear()
    return tmp_path / "engines"


def an_engine(name: str, **changes: object) -> EngineSpec:
    spec = EngineSpec.model_validate(ENGINE_FIELDS | {"name": name} | changes)
    spec.folder.mkdir(parents=True)
    (spec.folder / "engine.json").write_text(spec.model_dump_json())
    return spec


def test_the_default_engine_is_the_one_built_last() -> None:
    an_engine("b", created="2026-11-01T10:00:00.000000+00:00")
    last = an_engine("a", created="2026-11-02T09:00:00.000000+00:00")
    an_engine("c", created="2026-10-31T11:00:00.000000+00:00")
    assert load_engine() == last


def test_the_variable_sets_the_default_and_a_name_overrules_it(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = an_engine("old"), an_engine("new", created="2026-12-01T00:00:00.000000+00:00")
    monkeypatch.setenv("EMBEDMILL_ENGINE", "old")
    settings.cache_clear()
    assert load_engine() == old
    assert load_engine("new") == new


def test_without_any_engine_the_command_that_builds_one_is_named(engines: Path) -> None:
    with pytest.raises(UserError, match=f"no engine in {engines}.*python -m engine_build --model"):
        load_engine()


def test_an_engine_that_is_not_there_is_named_with_those_that_are(engines: Path) -> None:
    an_engine("beta"), an_engine("alpha")
    with pytest.raises(UserError, match=r"no engine gamma .*there: alpha, beta.*python -m engine_build .*--name gamma"):
        load_engine("gamma")
    (engines / "file").touch()
    with pytest.raises(UserError, match="no engine file"):
        load_engine("file")


@pytest.mark.parametrize("name", [".", "..", "../other", "a/b", "/etc", "a/"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is no engine name"):
        engine_folder(name)
    with pytest.raises(UserError, match="is no engine name"):
        load_engine(name)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "json"),
        ("{", "json"),
        ("[]", "object"),
        (json.dumps(ENGINE_FIELDS | {"pooling": "max"}), "pooling"),
        (json.dumps(ENGINE_FIELDS | {"colour": "red"}), "colour"),
        (json.dumps({key: value for key, value in ENGINE_FIELDS.items() if key != "onnx_sha256"}), "onnx_sha256"),
    ],
)
def test_a_garbled_record_is_refused_with_the_commands_that_mend_it(content: str, why: str, engines: Path) -> None:
    (engines / "one").mkdir(parents=True)
    (engines / "one" / "engine.json").write_text(content)
    for name in (None, "one"):
        with pytest.raises(UserError, match=why) as caught:
            load_engine(name)
        message = caught.value.format_message()
        assert f"rm -r {engines / 'one'} && python -m engine_build" in message
        assert "\n" not in message


def test_a_file_is_only_used_as_it_was_recorded() -> None:
    spec = an_engine("one")
    file, right = spec.folder / "model.onnx", hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(UserError, match="no file"):
        spec.check_file("model.onnx", right)
    file.write_bytes(b"weights")
    assert spec.check_file("model.onnx", right) == file
    file.write_bytes(b"weightz")
    with pytest.raises(UserError) as caught:
        spec.check_file("model.onnx", right)
    message = caught.value.format_message()
    assert right in message
    assert hashlib.sha256(b"weightz").hexdigest() in message
    assert f"rm -r {spec.folder} && python -m engine_build --model acme/one" in message


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "other"},
        {"tokenizer_sha256": "other"},
        {"pooling": "cls"},
        {"normalize": False},
        {"max_length": 256},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_a_vector_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert _fingerprint(**change) != _fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "two"},
        {"model": "/models/one"},
        {"revision": None},
        {"onnx_sha256": "exported by another version"},
        {"prefix": "query: "},
        {"created": "2027-01-01T00:00:00.000000+00:00"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_no_vector_keeps_the_fingerprint(change: dict[str, object]) -> None:
    assert _fingerprint(**change) == _fingerprint()


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    assert _fingerprint() == "9a2e1556764217ef"


def _fingerprint(**changes: object) -> str:
    return EngineSpec.model_validate(ENGINE_FIELDS | changes).fingerprint
