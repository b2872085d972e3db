"""What deploy/slurm promises: its scripts are run here without SLURM, with the variables that SLURM sets."""

import re
import shutil
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from contract.engine import EngineSpec
from contract.jobs import jobs_in
from contract.settings import settings
from embedmill.processes import process
from tests.commands import wait_until
from tests.conftest import JARGON

ROOT = Path(__file__).parent.parent.parent
SLURM = ROOT / "deploy" / "slurm"
SCRIPTS = sorted(SLURM.iterdir())
BATCH = sorted(SLURM.glob("*.sbatch"))
OPTIONS = {
    *("account", "array", "chdir", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error", "exclusive"),
    *("export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "mail-type", "mail-user", "mem"),
    *("mem-per-cpu", "mem-per-gpu", "nodes", "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output"),
    *("partition", "qos", "requeue", "reservation", "signal", "time", "kill-on-invalid-dep", "parsable"),
}
"""Long options of sbatch, by its manual of version 24."""


def directives(script: Path) -> dict[str, str]:
    """The options of a script's ``#SBATCH`` lines. sbatch reads none after the first command."""
    lines = script.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
    found = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in lines if line.startswith("#SBATCH")]
    assert all(found)
    return {match[1]: match[2] or "" for match in found if match}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_one_that_bash_and_shellcheck_take(script: Path) -> None:
    assert script.read_text(encoding="utf-8").startswith(("#!/bin/bash\n", "# What the scripts"))
    for command in (["bash", "-n"], [str(Path(sys.executable).with_name("shellcheck")), "--external-sources"]):
        if "shellcheck" in command[0]:
            command[0] = shutil.which("shellcheck") or command[0]
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", BATCH, ids=lambda script: script.name)
def test_what_a_script_asks_for_are_options_of_sbatch(script: Path) -> None:
    asked = directives(script)
    assert asked.keys() <= OPTIONS
    assert re.fullmatch(r"\d\d:\d\d:00", asked["time"])
    assert asked["output"].startswith("run/")  # submit.sh makes it


def test_the_notice_is_longer_than_a_worker_takes_to_stop() -> None:
    (stop,) = re.findall(r"EMBEDMILL_STOP_SECONDS:-(\d+)", (SLURM / "common.sh").read_text(encoding="utf-8"))
    for name in ("workers.sbatch", "producer.sbatch"):
        receiver, _, seconds = directives(SLURM / name)["signal"].partition("@")
        assert receiver == "B:TERM"  # to the script alone, which hands it on
        assert int(stop) < int(seconds)
        assert "requeue" in directives(SLURM / name)
    page = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    assert all(f"deploy/slurm/{script.name}" in page for script in SCRIPTS)


STAND_IN = """#!/bin/bash
printf '%s\\n' "PRODUCER=${PRODUCER:-} $*" >>"$0.calls"
wc -l <"$0.calls"
"""
"""For sbatch: writes down how it was called, and gives jobs the ids 1, 2 and 3."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as one submits from, with this Python first on the path."""
    folder, programs = tmp_path / "site", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (folder / "deploy").symlink_to(ROOT / "deploy")
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "sbatch").write_text(STAND_IN)
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("EMBEDMILL_REDIS_URL", raising=False)
    monkeypatch.setenv("EMBEDMILL_OUTPUT", str(settings().output.absolute()))
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(settings().engines.absolute()))
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(folder))
    monkeypatch.setenv("SLURMD_NODENAME", "127.0.0.1")
    return folder


def submitted(site: Path, *options: str) -> list[str]:
    """How ``submit.sh`` with these options calls sbatch."""
    done = subprocess.run(["deploy/slurm/submit.sh", *options], cwd=site, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "producer 1, workers 2, verify 3; their output is in run/\n"
    assert (site / "run").stat().st_mode & 0o777 == 0o700
    return (site.parent / "bin" / "sbatch.calls").read_text().splitlines()


def script(name: str, log: Path, *words: str, **variables: str) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    """A batch script's body, run as SLURM runs it: a copy of it, in a folder of SLURM's."""
    copied = log.parent / f"slurm_script_{log.name}"
    shutil.copy(SLURM / name, copied)
    return process(["bash", str(copied), *words], log, env=variables, cwd=log.parent)


@pytest.mark.slow
def test_a_small_job_goes_through_the_scripts_and_a_worker_that_gets_notice_makes_room(
    tiny: EngineSpec, site: Path, tmp_path: Path
) -> None:
    words = ["--dataset", str(JARGON), "--text-column", "text", "--limit", "300", "--batch-rows", "2"]
    producer_call, workers_call, verify_call = submitted(site, *words)
    assert producer_call == " ".join(["PRODUCER= --parsable deploy/slurm/producer.sbatch", *words])
    assert workers_call.startswith("PRODUCER=1 --parsable --export=ALL --dependency=after:1 ")
    assert "--dependency=afterok:1 --kill-on-invalid-dep=yes" in verify_call

    with script("producer.sbatch", tmp_path / "producer.log", *words, SLURM_JOB_ID="1") as producer:
        wait_until(lambda: (site / "run" / "1.redis").exists())
        assert (site / "run" / "1.redis").stat().st_mode & 0o777 == 0o600
        with script("workers.sbatch", tmp_path / "first.log", PRODUCER="1", SLURM_ARRAY_TASK_ID="0") as first:
            wait_until(lambda: any(job.committed() for job in jobs_in(settings().output)))
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 0
        assert "The worker stops" in (tmp_path / "first.log").read_text()
        with script("workers.sbatch", tmp_path / "second.log", PRODUCER="1", SLURM_ARRAY_TASK_ID="0") as second:
            assert producer.wait(120) == 0, (tmp_path / "producer.log").read_text()
            assert second.wait(60) == 0, (tmp_path / "second.log").read_text()
    assert (site / "run" / "1.redis").read_text() == "ended"
    assert "300 of 300" in (tmp_path / "producer.log").read_text()
    with script("verify.sbatch", tmp_path / "verify.log", "--sample", "16") as verify:
        assert verify.wait(120) == 0, (tmp_path / "verify.log").read_text()
    assert "Verified: 300 rows accounted for" in (tmp_path / "verify.log").read_text()
