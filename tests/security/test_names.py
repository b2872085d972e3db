"""Names that would lead out of their folders."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import click
import datasets
import pytest
from click.testing import CliRunner

import engine_build.command
import producer.command
import verify.command
from contract.engine import EngineSpec
from contract.redis.keys import JOBS
from contract.settings import settings
from producer.dataset import open_dataset
from producer.texts import DatasetSource
from tests.conftest import JARGON
from tests.contract.samples import WholeLedger, a_job
from tests.security.station import Station, point_at, send


def test_a_worker_writes_only_into_the_folder_that_a_producer_made_for_the_job(
    station: Station, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Forged records in Redis, with batches whose hashes are right."""
    client, other = station.client(), a_job(tmp_path / "other", rows=20)
    other.save()
    forged = [
        a_job(tmp_path / "nowhere"),
        a_job(tmp_path / "other", prefix="a").model_copy(update={"folder": other.folder}),
        a_job(tmp_path, prefix="b").model_copy(update={"folder": tmp_path / "x" / ".." / ".." / "etc"}),
    ]
    point_at(monkeypatch, f"redis://admin:admin@localhost:{station.port}/0")
    before = sorted(tmp_path.rglob("*"))
    for job in forged:
        WholeLedger(patience=5).publish(job, 0, b"whatever")
        send(station, job, job.key, 0)
        station.said(f"cannot serve job {job.key}, and leaves it to others: ")
        assert WholeLedger(patience=5).queued(job.key) == 1
    assert [len(re.findall(words, station.log.read_text())) > 0 for words in ("no job in", "belongs to another job")]
    # No path: the record as a whole is refused. A name that is not the key's, or not the hash of the rest: likewise.
    record = json.loads(forged[0].model_dump_json())
    for name, folder in (("nul", f"{tmp_path}/nul\0/nul"), ("mine", f"{tmp_path}/yours"), ("..", f"{tmp_path}/..")):
        client.zadd(JOBS, {name: 0})
        client.set(f"embedmill:{name}:job", json.dumps(record | {"folder": folder, "split": "train", "id": name}))
    client.zadd(JOBS, {"split": 0})
    client.set("embedmill:split:job", json.dumps(record | {"folder": f"{tmp_path}/split", "split": "../../x"}))
    for name in ("nul", "mine", "split", ".."):
        station.said(f"cannot serve job {name}, and leaves it to others: its record in Redis is not a job's")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "arguments", "env", "says"),
    [
        (verify.command.main, ["../../etc"], {}, "no job in ../../etc"),
        (verify.command.main, ["/etc"], {}, "no job in /etc"),
        (verify.command.main, ["a\0b"], {}, "no job in"),
        (producer.command.main, ["status", "../../etc"], {}, "no job in ../../etc"),
        (producer.command.main, ["retry", "../.."], {}, "no job in ../.."),
        (producer.command.main, ["--dataset", str(JARGON)], {"EMBEDMILL_ENGINE": "../x"}, "'../x' is no engine name"),
        (producer.command.main, ["--dataset", str(JARGON), "--engine", "/x"], {}, "'/x' is no engine name"),
        (producer.command.main, ["--dataset", str(JARGON), "--engine", "a\0b"], {}, r"'a\x00b' is no engine name"),
        (producer.command.main, ["--dataset", "../../nothing"], {}, "no dataset ../../nothing"),
        (producer.command.main, ["--dataset", str(JARGON), "--split", "../x"], {}, "no split '../x'"),
        (engine_build.command.main, ["--model", "{model}", "--name", "../x"], {}, "'../x' is no engine name"),
        (engine_build.command.main, ["--model", "{model}", "--name", ".."], {}, "'..' is no engine name"),
    ],
)
def test_a_name_on_the_command_line_cannot_leave_its_folder(
    command: click.Command,
    arguments: list[str],
    env: dict[str, str],
    says: str,
    tiny: EngineSpec,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    with contextlib.chdir(place):
        told = CliRunner().invoke(command, [one.format(model=tiny_model) for one in arguments])
    assert told.exit_code == 1
    assert told.stderr.startswith("Error: ")
    assert says in told.stderr
    assert told.stderr.count("\n") == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", place]


def test_a_saved_dataset_cannot_name_a_split_that_leaves_the_folder(tiny: EngineSpec, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]}, split="train[:2]")
    rows.save_to_disk(tmp_path / "saved" / "train")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["../x"]}')
    shutil.copytree(tmp_path / "saved" / "train", tmp_path / "x")
    told = CliRunner().invoke(producer.command.main, ["--dataset", str(tmp_path / "saved")])
    assert "Error: '../x' is no name of a split" in told.stderr
    # A part of a split is named as no file is, and is a dataset all the same.
    assert open_dataset(DatasetSource(str(tmp_path / "x"))).split == "train"
