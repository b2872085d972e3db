"""Models of a Hub on the loopback interface, asked by the real client."""

from pathlib import Path

import pytest

from contract.engines import load_engine
from contract.errors import UserError
from contract.settings import settings
from engine_build.source import fetch
from tests.commands import called
from tests.hub import READER, Hub, files_of


@pytest.fixture
def first(hub: Hub, tiny_model: Path) -> str:
    """``acme/tiny-bert``, whose name was ``tiny-bert``; returns the commit that has the tag ``v1``."""
    hub.renamed["tiny-bert"] = "acme/tiny-bert"
    commit = hub.add("models", "acme/tiny-bert", {**files_of(tiny_model), "README.md": b"# Tiny", "tf_model.h5": b"x"})
    repo = hub.repos["models", "acme/tiny-bert"]
    repo.refs["v1"] = commit
    repo.commit({**repo.head, "config.json": repo.head["config.json"] + b"\n"})
    return commit


def test_a_model_is_fetched_at_its_revision(first: str, hub: Hub, tiny_model: Path) -> None:
    head = hub.repos["models", "acme/tiny-bert"].refs["main"]
    for revision, commit in ((None, head), ("main", head), ("v1", first), (first, first)):
        source = fetch("acme/tiny-bert", revision)
        assert (source.model, source.revision) == ("acme/tiny-bert", commit)
    assert files_of(source.folder) == files_of(tiny_model)  # neither the card nor weights of other frameworks


def test_a_models_name_of_old_leads_to_it(first: str) -> None:
    assert fetch("tiny-bert", "v1").revision == first


def test_a_name_without_an_owner_is_one_of_sentence_transformers(hub: Hub, tiny_model: Path) -> None:
    commit = hub.add("models", "sentence-transformers/mill-v2", files_of(tiny_model))
    source = fetch("mill-v2")
    assert (source.model, source.revision) == ("sentence-transformers/mill-v2", commit)
    hub.add("models", "sentence-transformers/bert-base-cased", files_of(tiny_model))
    with pytest.raises(UserError, match="no model bert-base-cased on the Hub"):  # which is Google's
        fetch("bert-base-cased")


def test_weights_of_the_older_kind_are_fetched_where_there_are_no_others(hub: Hub) -> None:
    hub.add("models", "acme/old", {"config.json": b"{}", "pytorch_model.bin": b"weights", "model.onnx": b"x"})
    assert set(files_of(fetch("acme/old").folder)) == {"config.json", "pytorch_model.bin"}


def test_a_private_model_takes_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("models", "acme/secret", {"config.json": b"{}", "model.safetensors": b"weights"}, private=True)
    with pytest.raises(UserError, match="no model acme/secret on the Hub"):
        fetch("acme/secret")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert (fetch("acme/secret").folder / "model.safetensors").read_bytes() == b"weights"


def test_what_the_hub_does_not_have_is_refused(first: str) -> None:
    for model, revision in (("acme/nothing", None), ("acme/tiny-bert", "v2")):
        with pytest.raises(UserError, match=f"no model {model} on the Hub"):
            fetch(model, revision)


def test_the_command_builds_an_engine_from_the_hub(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    settings.cache_clear()
    called("engine_build", "--model", "acme/tiny-bert", "--revision", "v1")
    spec = load_engine("tiny-bert")
    assert (spec.model, spec.revision) == ("acme/tiny-bert", first)
