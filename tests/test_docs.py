"""Every command and flag that the documentation shows exists, and every flag that exists is explained."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import embedmill.command
import engine_build.command
import producer.command
import verify.command
from contract.settings import Settings
from embedmill.command import PARTS

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMANDS: dict[str, click.Command] = {
    "engine_build": engine_build.command.main,
    "producer": producer.command.main,
    "verify": verify.command.main,
}


def shown(page: Path) -> list[str]:
    """The shell commands of a page's code blocks."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line.strip().removeprefix("$ ").split("  #")[0].strip() for block in blocks for line in block.splitlines()]


def flags(command: click.Command) -> set[str]:
    """Those of the command and of its subcommands."""
    parts = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    every = [
        flag for part in parts for parameter in part.params for flag in [*parameter.opts, *parameter.secondary_opts]
    ]
    return {*every, "--help"}


@functools.cache
def help_of(script: str) -> str:
    """What ``python`` with these words and ``--help`` prints."""
    told = subprocess.run([sys.executable, *script.split(), "--help"], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    return told.stdout


def part(name: str) -> click.Command:
    """A command of ``embedmill``."""
    found = embedmill.command.main.get_command(click.Context(embedmill.command.main), name)
    assert found is not None
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page: Path) -> None:
    for line in shown(page):
        if match := re.search(r"python -m (\w+)(?!\S)(.*)", line):
            name, rest = match.groups()
            assert name in COMMANDS, line
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= flags(COMMANDS[name]), line
        elif match := re.search(r"python ((?:examples|bench)/\w+\.py|-m (?:examples|bench)\.\w+)(.*)", line):
            told = help_of(match[1])
            assert all(flag in told for flag in re.findall(r"(?<!\S)--[a-z-]+", match[2])), line
        elif match := re.match(r"(?:\w+=\S+ )*embedmill (--version$|\w+)(.*)", line):
            name, rest = match.groups()
            if name != "--version":
                assert name in PARTS, line
                assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= flags(part(name)), line
        elif match := re.match(r"bench/\w+\.sh", line):
            assert os.access(ROOT / match[0], os.X_OK), line
        elif match := re.match(r"make (\w+)", line):
            assert re.search(rf"^{match[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line


def test_the_readme_shows_the_one_command_the_four_and_the_two() -> None:
    lines = shown(ROOT / "README.md")
    assert any(line.startswith("embedmill embed reviews.csv --model") for line in lines[:5])
    for command in ("make demo", "make test", "celery -A worker worker", "python -m verify"):
        assert command in lines
    assert any(line.startswith("python -m engine_build --model") for line in lines)
    assert any(line.startswith("python -m producer --dataset") for line in lines)


@pytest.mark.parametrize("name", [*COMMANDS, "embedmill embed"])
def test_every_flag_and_command_explains_itself(name: str) -> None:
    command = COMMANDS[name] if name in COMMANDS else part("embed")
    assert command.help
    assert command.epilog is not None
    assert "Examples:" in command.epilog
    parts = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    assert all(part.help for part in parts)
    for parameter in (parameter for part in parts for parameter in part.params):
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter


def settings_table() -> str:
    """The table of ``docs/settings.md``. To update the page after a change of ``contract/settings.py``, paste what
    ``python -c 'from tests.test_docs import settings_table; print(settings_table())'`` prints."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        meaning = " ".join(str(field.description).split()).replace("``", "`")
        rows.append(f"| `EMBEDMILL_{name.upper()}` | {default} | {meaning} |")
    return "\n".join(rows)


def test_the_settings_page_is_that_of_the_settings() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert table == settings_table()


def test_the_readme_links_to_the_settings() -> None:
    assert "](docs/settings.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_page_names_a_setting_that_does_not_exist() -> None:
    known = {f"EMBEDMILL_{name.upper()}" for name in Settings.model_fields}
    of_tests = {"EMBEDMILL_FUZZ", "EMBEDMILL_PROMTOOL", "EMBEDMILL_TEST_ENGINES"}
    for page in PAGES:
        named = re.findall(r"EMBEDMILL_[A-Z_]*[A-Z]", page.read_text(encoding="utf-8"))
        assert set(named) <= known | of_tests, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def templates() -> set[str]:
    """Every text in the packages' code, with … for what is filled in."""
    found = set()
    for package in ("contract", "embedmill", "engine_build", "producer", "verify", "worker"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.add(
                        "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


def test_every_message_of_the_troubleshooting_page_occurs_in_the_source() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages, there = re.findall(r"^### `(.+)`$", text, re.MULTILINE), templates()
    assert len(messages) == len(set(messages)) > 30
    for message in messages:
        assert any(message in template for template in there), message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extras_exist(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"'?\.\[(\w+)\]", page.read_text(encoding="utf-8")):
        assert extra in project["optional-dependencies"], extra


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name}" in index


def test_the_hooks_before_a_commit_are_the_commands_of_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    lint = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert [hook["entry"] for hook in hooks] == lint
    assert {repo["repo"] for repo in config["repos"]} == {"local"}  # nothing is fetched
    assert not any(hook["pass_filenames"] for hook in hooks)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def records(name: str, **wanted: object) -> list[dict[str, Any]]:
    """The records of a file in ``docs/benchmarks`` that have these values."""
    found: list[dict[str, Any]] = json.loads((ROOT / "docs" / "benchmarks" / name).read_text(encoding="utf-8"))
    return [record for record in found if wanted.items() <= record.items()]


def rate(name: str, **wanted: object) -> float:
    """The ``rows_per_s`` of the only record that has these values."""
    (record,) = records(name, **wanted)
    return float(record["rows_per_s"])


H100 = "1 × NVIDIA H100 80GB HBM3, Intel(R) Xeon(R) Processor, 16 cores, 126 GiB"
H200 = "1 × NVIDIA H200, Intel(R) Xeon(R) Processor, 32 cores, 252 GiB"

SPEEDS = {  # line of the README's table → encode() and the job, rows/s
    "2 CPU cores, MiniLM": (
        rate("encode.json", system="sentence-transformers"),
        rate("encode.json", system="embedmill job"),
    ),
    "a million reviews": (
        rate("job.json", system="sentence-transformers fp16-packed", dataset="reviews", rows=6000),
        rate("job.json", system="embedmill job, torch", dataset="reviews", rows=1_000_000, children=2),
    ),
    "three million short texts": (
        rate("job.json", system="sentence-transformers fp16-packed", dataset="short", rows=20_000),
        rate("job.json", system="embedmill job, torch", dataset="short", rows=3_000_000, batch="8064", machine=H100),
    ),
    "two million reviews": (
        rate("job.json", system="sentence-transformers fp16-packed", rows=8000, machine=H200),
        rate("job.json", system="embedmill job, torch", rows=2_000_000, machine=H200),
    ),
}


@pytest.mark.parametrize("what", SPEEDS)
def test_the_readmes_speeds_are_those_of_the_records(what: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("|") and what in line]
    peer, job, factor = (float(cell.strip("× ").replace(",", "")) for cell in line.split("|")[2:5])
    assert (peer, job) == pytest.approx(SPEEDS[what], rel=0.002)
    assert factor == pytest.approx(SPEEDS[what][1] / SPEEDS[what][0], abs=0.05)


def test_the_readmes_faults_are_those_of_the_record() -> None:
    runs = records("chaos.json")
    faults = [run for run in runs if run["fault"] != "undisturbed"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    injected = sum(run["injected"] for run in faults)
    assert f"| {len(faults)} kinds of fault, {injected:,} faults (`make chaos`)" in text
    assert "0 rows lost, 0 twice, 0 different" in text
    assert not any(run["rows_lost"] or run["rows_twice"] or run["rows_different"] for run in runs)
    assert f"of {sum(len(run['rows_with_error']) for run in runs)} rows made to fail" in text


def test_the_table_of_faults_is_that_of_the_record() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for run in records("chaos.json"):
        start = f"| {run['fault']} | {run['injected']} | {run['rows_lost']} | {run['rows_twice']} |"
        assert f"{start} {run['rows_different']} | {run['work_repeated']:.1f} % | {run['recovery_s']:.1f} s |" in text


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    for path in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / path).exists() or path in ("output/", "engines/", "staging/", "data/"), path
