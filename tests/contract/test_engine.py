import hashlib
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from contract.engine import EngineSpec, engine_folder
from contract.engines import load_engine, record_plan
from contract.errors import UserError
from contract.plan import BatchShape, PackedProfile, PaddedProfile, PlanSpec
from contract.settings import settings
from tests.contract.samples import ENGINE_FIELDS, PLAN_FIELDS, plan_spec


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
        (json.dumps(ENGINE_FIELDS | {"pooling": "cls+most"}), "pooling"),
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
        {"truncate_dim": 16},
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
        {"prompts": {"query": "query: "}},
        {"model_length": 256},
        {"created": "2027-01-01T00:00:00.000000+00:00"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_no_vector_keeps_the_fingerprint(change: dict[str, object]) -> None:
    assert _fingerprint(**change) == _fingerprint()


def test_vectors_that_are_normalized_after_they_are_cut_are_others() -> None:
    assert _fingerprint(truncate_dim=16) != _fingerprint(truncate_dim=16, chosen=("normalize",))


@pytest.mark.parametrize(
    ("changes", "unit"),
    [
        ({"normalize": False}, False),
        ({}, True),
        ({"truncate_dim": 16}, False),
        ({"truncate_dim": 16, "chosen": ("normalize",)}, True),
        ({"pooling": "tokens"}, True),
    ],
)
def test_only_what_is_normalized_last_has_norm_1(changes: dict[str, object], unit: bool) -> None:
    assert EngineSpec.model_validate(ENGINE_FIELDS | changes).unit_norm is unit


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    assert _fingerprint() == "6471e579ace9cc81"


def _fingerprint(**changes: object) -> str:
    return EngineSpec.model_validate(ENGINE_FIELDS | changes).fingerprint


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("32x512", (32, 512), (32, 512)),
        ("1-32x512", (1, 512), (32, 512)),
        ("1-32x257-512", (1, 257), (32, 512)),
        ("1x1", (1, 1), (1, 1)),
    ],
)
def test_a_padded_profile_is_read_as_it_is_written(text: str, least: tuple[int, int], most: tuple[int, int]) -> None:
    profile = PaddedProfile.parse(text)
    assert profile == PaddedProfile(BatchShape(*least), BatchShape(*most))
    assert profile.opt == profile.max
    assert str(profile) == text


@pytest.mark.parametrize("text", ["", "512", "0x512", "32x0", "33-32x512", "32x513-512", "-1x5", "32 x 512", "a1x5"])
def test_what_is_no_padded_profile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no shape|is an empty range"):
        PaddedProfile.parse(text)


@pytest.mark.parametrize("kind", [PackedProfile, BatchShape])
def test_a_packed_profile_and_a_shape_are_read_as_they_are_written(kind: type[PackedProfile | BatchShape]) -> None:
    assert kind.parse("1056x33792") == kind(1056, 33792)
    assert str(kind(1056, 33792)) == "1056x33792"
    for text in ("", "512", "0x512", "32x0", "1-32x512", "32x1-512", "-1x5", "32 x 512", "a1x5", "00x5"):
        with pytest.raises(ValueError, match=f"'{text}' is no shape: expected ROWSx"):
            kind.parse(text)


def test_a_packed_shape_has_rows_to_spare_for_any_padding() -> None:
    assert PackedProfile(512, 16_384).input_rows(512) == 512 + 32
    assert PackedProfile(64, 1_000).input_rows(512) == 64 + 2


def test_a_plan_has_profiles_of_one_kind() -> None:
    assert plan_spec().profiles == (PaddedProfile.parse("1-32x1-512"),)
    packed = plan_spec(packed_profiles=["8x1024"])
    assert (packed.packed, packed.profiles) == (True, (PackedProfile(8, 1024),))
    assert PlanSpec.model_validate_json(packed.model_dump_json()) == packed
    for profiles in ([], ["1-32x1-512"]):
        with pytest.raises(ValidationError, match="padded or packed profiles"):
            PlanSpec.model_validate(
                PLAN_FIELDS | {"padded_profiles": profiles, "packed_profiles": ["8x1024"] if profiles else []}
            )


def test_a_plan_is_recorded_in_place_of_one_for_the_same_machine() -> None:
    spec = an_engine("one")
    record_plan(spec, plan_spec(sm=75))
    record_plan(spec, plan_spec(sha256="first"))
    plans = spec.folder / "plans"
    plans.mkdir()
    before = record_plan(spec, plan_spec(file="plans/a.plan"))
    (plans / "a.plan").write_bytes(b"")
    (plans / "another-build.plan").write_bytes(b"")
    now = record_plan(before, plan_spec(sha256="second", file="plans/b.plan"))
    assert [file.name for file in plans.iterdir()] == ["another-build.plan"]
    assert [(plan.sm, plan.sha256) for plan in now.plans] == [(75, "s"), (90, "second")]
    assert load_engine("one") == now
    assert now.fingerprint == spec.fingerprint
    assert now.plan_for("10.13.3.9", 90).sha256 == "second"
    assert json.loads((spec.folder / "engine.json").read_text())["plans"][0]["padded_profiles"] == ["1-32x1-512"]


def with_entry(field: str, entry: object) -> EngineSpec:
    """An engine with a good plan and, in one field, an entry that was put there by another version or by hand."""
    spec = record_plan(an_engine("one"), plan_spec())
    record = json.loads((spec.folder / "engine.json").read_text())
    record[field] = [entry, *record[field]]
    (spec.folder / "engine.json").write_text(json.dumps(record))
    return load_engine("one")


_OLD_PLAN = {key: value for key, value in PLAN_FIELDS.items() if key != "gpu"}


@pytest.mark.parametrize(
    ("field", "entry", "why"),
    [
        ("plans", _OLD_PLAN, "gpu: field required"),
        ("plans", PLAN_FIELDS | {"shapes": ["32x512"]}, "shapes: extra inputs are not permitted"),
        ("plans", PLAN_FIELDS | {"padded_profiles": None}, "padded_profiles: input should be a valid tuple"),
        ("plans", PLAN_FIELDS | {"padded_profiles": [None]}, "padded_profiles.0: value error, none is no shape"),
        (
            "plans",
            PLAN_FIELDS | {"padded_profiles": [{"rows": 0}]},
            "padded_profiles.0: value error, {'rows': 0} is no",
        ),
        ("plans", PLAN_FIELDS | {"padded_profiles": ["512"]}, "padded_profiles.0: value error, '512' is no shape"),
        (
            "plans",
            PLAN_FIELDS | {"packed_profiles": [7], "padded_profiles": []},
            "packed_profiles.0: value error, 7 is",
        ),
        ("plans", PLAN_FIELDS | {"padded_profiles": []}, "value error, a plan has padded or packed profiles"),
        ("plans", None, "input should be a valid dictionary or instance of planspec"),
        ("plans", "plans/a.plan", "input should be a valid dictionary"),
        ("compiled", {"file": "compiled/a"}, "sha256: field required"),
        ("measured", {"gpu": "NVIDIA H200", "speed": 1}, "runtime: field required"),
    ],
)
def test_an_entry_that_cannot_be_used_spoils_nothing_but_itself(field: str, entry: object, why: str) -> None:
    spec = with_entry(field, entry)
    assert (spec.fingerprint, spec.compiled, spec.measured) == (_fingerprint(), (), ())
    assert spec.plan_for("10.13.3.9", 90) == plan_spec()
    (line,) = spec.unusable
    assert line.startswith(f"{spec.folder / 'engine.json'} has an entry of {field} that this version cannot use ({why}")
    command = {"plans": "plan", "compiled": "compile", "measured": "tune"}[field]
    assert line.endswith(f": python -m engine_build {command} --engine one")
    assert "\n" not in line
    now = record_plan(spec, plan_spec(sm=75))  # what is added anew replaces what cannot be used; the rest stays
    assert now.unusable == load_engine("one").unusable == ([] if field == "plans" else [line])
    assert [plan.sm for plan in load_engine("one").plans] == [90, 75]
    assert (entry in json.loads((spec.folder / "engine.json").read_text())[field]) == (field != "plans")


def test_a_machine_whose_only_plan_cannot_be_used_is_told_why() -> None:
    spec = with_entry("plans", _OLD_PLAN)
    told = (
        r"plans for TensorRT 10\.13\.3\.9 on SM 90 besides 1 that this version cannot use \(gpu: field required\); this"
    )
    with pytest.raises(UserError, match=told):
        spec.plan_for("10.13.3.9", 89)
    alone = spec.with_entries("measured", ()).model_copy(update={"plans": ()})
    with pytest.raises(UserError, match=r"has no plan besides 1 that .*; build it on this machine: .* --engine one"):
        alone.plan_for("10.13.3.9", 89)


@pytest.mark.parametrize("field", ["plans", "compiled", "measured"])
@pytest.mark.parametrize("value", [None, 7, {"a": 1}])
def test_what_is_no_list_of_entries_is_refused_with_a_reason(field: str, value: object) -> None:
    spec = an_engine("one")
    (spec.folder / "engine.json").write_text(json.dumps(ENGINE_FIELDS | {field: value}))
    with pytest.raises(UserError, match=rf"engine.json is not an engine of this version \({field}: input should be"):
        load_engine("one")


@pytest.mark.parametrize(("tensorrt", "sm"), [("10.13.3.9", 89), ("11.4.0.106", 90)])
def test_a_plan_for_another_machine_is_refused_with_both_sides_and_the_command(tensorrt: str, sm: int) -> None:
    spec = record_plan(an_engine("one"), plan_spec())
    told = r"has plans for TensorRT 10\.13\.3\.9 on SM 90; this machine has TensorRT {} on SM {}; .* plan --engine one"
    with pytest.raises(UserError, match=told.format(re.escape(tensorrt), sm)):
        spec.plan_for(tensorrt, sm)


def test_an_engine_without_a_plan_says_how_to_get_one() -> None:
    with pytest.raises(UserError, match=r"engine one has no plan;.*python -m engine_build plan --engine one"):
        an_engine("one").plan_for("10.13.3.9", 90)


@pytest.mark.parametrize("packed", [False, True])
def test_a_plan_of_another_onnx_file_is_refused(packed: bool) -> None:
    profiles: dict[str, object] = {"packed_profiles": ["8x1024"]} if packed else {}
    spec = record_plan(an_engine("one"), plan_spec(onnx_sha256="old", **profiles))
    with pytest.raises(UserError, match=f"has {'p' if packed else 'h'};.*plan --engine one"):
        spec.plan_for("10.13.3.9", 90)


def test_a_plan_is_taken_only_with_the_recorded_hash() -> None:
    spec = an_engine("one")
    (spec.folder / "plans").mkdir()
    file = spec.folder / "plans" / "a.plan"
    file.write_bytes(b"a plan")
    plan = plan_spec(file="plans/a.plan", sha256=hashlib.sha256(b"a plan").hexdigest())
    assert spec.check_plan(plan) == file
    file.write_bytes(b"a plot")
    with pytest.raises(UserError, match=r"a\.plan has SHA-256.*records.*plan --engine one"):
        spec.check_plan(plan)
    file.unlink()
    with pytest.raises(UserError, match="has SHA-256 no file"):
        spec.check_plan(plan)
