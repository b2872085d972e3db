import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from contract.engine import EngineSpec
from contract.jobs import latest_job
from producer.command import main
from tests.conftest import build_engine


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_text("id,text,row_id\n" + "".join(f"{row},the mill number {row},7\n" for row in range(10)))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--dimensions", 33), "computes 32 dimensions"),
        (("--ranges", "x.npy"), "--ranges is for int8"),
        (("--dtype", "int8", "--ranges", "x.npy"), "x.npy holds no ranges"),
        (("--dtype", "int4"), "int4"),
        (("--text", "{text}", "--text-column", "text"), "exclude each other"),
        (("--text", "{text"), "is no template"),
        (("--overlap", 3), "add --long-texts window"),
        (("--long-texts", "window", "--overlap", 510), "windows of 510 tokens cannot share 510"),
        (("--keep-columns", "id,stars"), "no column 'stars'"),
        (("--keep-columns", "row_id"), "a shard has a column row_id of its own"),
        (("--output", "ftp://host/x"), "expected s3://bucket/prefix"),
        (("--output", "s3://bucket/x?endpoint_override=evil"), "expected s3://bucket/prefix"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense_are_refused_before_anything_is_made(
    options: tuple[object, ...], told: str, tiny: EngineSpec, table: Path, redis_url: str
) -> None:
    done = run("--dataset", table, *options)
    assert done.exit_code in (1, 2)
    assert told in " ".join(done.output.replace("│", " ").split()), done.output
    assert not Path("output").exists()


def test_windows_are_refused_where_every_token_has_its_vector(tiny_model: Path, table: Path, redis_url: str) -> None:
    build_engine(tiny_model, "option-tokens", "tokens", max_length=32)
    done = run("--dataset", table, "--engine", "option-tokens", "--long-texts", "window")
    assert "gives a vector for each token" in done.output


def test_each_option_gives_another_job(tiny: EngineSpec, table: Path, redis_url: str) -> None:
    found = set()
    for options in (
        (),
        ("--dtype", "float16"),
        ("--dtype", "binary"),
        ("--dimensions", 8),
        ("--keep-columns", "id"),
        ("--keep-columns", "id, text,id"),
        ("--long-texts", "window"),
        ("--long-texts", "window", "--overlap", 3),
    ):
        assert run("--dataset", table, "--detach", *options).exit_code == 0
        found.add(latest_job().id)
    assert latest_job().overlap == 3
    assert len(found) == 8
    for same in (("--dimensions", 32), ("--dtype", "float32"), ("--long-texts", "truncate"), ("--keep-columns", " ")):
        assert run("--dataset", table, "--detach", *same).exit_code == 0
        found.add(latest_job().id)
    assert len(found) == 8


def test_a_prefix_that_the_model_would_leave_out_of_its_pooling_is_refused(
    tiny_model: Path, workplace: Path, table: Path
) -> None:
    """A model without prompts of its own is exported, and its graph pools over all of a row's tokens."""
    modules: list[Any] = [Transformer(str(tiny_model)), Pooling(32, "mean", include_prompt=False)]
    SentenceTransformer(modules=modules, device="cpu").save(str(workplace / "model"))
    build_engine(workplace / "model", "without-prompts")
    options = ("--dataset", table, "--engine", "without-prompts", "--text-column", "text", "--detach")
    refused = run(*options, "--prefix", "Text: ")
    assert refused.exit_code == 1
    assert "include_prompt is false" in refused.output
    assert "--prefix" not in run(*options, "--prefix", "").output


@pytest.fixture
def outside(tiny_model: Path, workplace: Path) -> str:
    """An engine of a model that leaves its prompts out of the pooling."""
    modules: list[Any] = [Transformer(str(tiny_model)), Pooling(32, "mean", include_prompt=False)]
    prompts = {"doc": "Text: ", "query": "Find: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(workplace / "model"))
    return build_engine(workplace / "model", "prompts-outside", max_length=16).name


def test_a_prompt_is_named(outside: str, table: Path, redis_url: str) -> None:
    options = ("--dataset", table, "--engine", outside, "--text-column", "text", "--detach")
    found = run(*options, "--prompt", "query")
    assert found.exit_code == 0, found.output
    assert latest_job().prefix == "Find: "
    unknown = run(*options, "--prompt", "passage")
    assert unknown.exit_code == 1
    assert "the prompts of engine prompts-outside are: query, doc" in unknown.output
    assert "give one of them" in run(*options, "--prompt", "doc", "--prefix", "x").output


def test_a_prompt_outside_of_the_pooling_takes_neither_windows_nor_the_whole_row(outside: str, table: Path) -> None:
    options = ("--dataset", table, "--engine", outside, "--text-column", "text", "--detach")
    assert "only a text's first window has the prompt" in run(
        *options, "--prompt", "doc", "--long-texts", "window", "--overlap", 2
    ).output.replace("\n", " ")
    assert "of a row none would be left" in run(*options, "--prefix", "word " * 20).output.replace("\n", " ")


def test_sparse_vectors_have_no_other_form(tiny: EngineSpec, workplace: Path, redis_url: str) -> None:
    folder = shutil.copytree(tiny.folder, tiny.folder.with_name("sparse-options"))
    tiny.model_copy(update={"name": folder.name, "pooling": "sparse", "normalize": False}).write(folder)
    (workplace / "some.jsonl").write_text('{"text": "a hacker", "weights": 3}\n')
    command = ("--dataset", "some.jsonl", "--engine", folder.name, "--text-column", "text", "--detach")
    for options in (
        *(("--dtype", "int8"), ("--dtype", "binary"), ("--dimensions", 8), ("--long-texts", "window")),
        ("--dtype", "int8", "--dimensions", 8),
    ):
        told = run(*command, *options)
        assert told.exit_code == 1
        assert f"Error: {options[0]} {options[1]}: the vectors of engine sparse-options are sparse; " in told.output
    told = run(*command, "--keep-columns", "weights")
    assert (told.exit_code, "a shard has a column weights of its own" in told.output) == (1, True)
    assert not list((workplace / "output").glob("*"))
    assert run(*command, "--dtype", "float16").exit_code == 0
    assert latest_job().form.dtype == "float16"
    assert run(*command, "--engine", tiny.name, "--keep-columns", "weights").exit_code == 0  # of dense vectors
