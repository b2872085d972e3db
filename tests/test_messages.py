"""Every message in the source: its counts agree with their numbers, and what it advises exists."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from contract.settings import Settings
from embedmill.command import PARTS
from tests.test_docs import COMMANDS, flags, part

ROOT = Path(__file__).parent.parent
PACKAGES = ("contract", "embedmill", "engine_build", "producer", "verify", "worker")


class Text(NamedTuple):
    """A text in the source, with … for what is filled in."""

    where: str
    text: str
    filled: tuple[str, ...]
    """The expressions that are filled in, in order."""


def _text(node: ast.AST, where: str) -> Text | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return Text(where, node.value, ())
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        filled = [ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
        return Text(where, "".join(parts), tuple(filled))
    return None


def texts() -> Iterator[Text]:
    """All but docstrings and parts of longer ones."""
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        apart: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr):
                apart.add(id(node.value))
            elif isinstance(node, ast.JoinedStr):
                apart |= {id(part) for part in node.values}
        for node in ast.walk(tree):
            if id(node) not in apart and (
                found := _text(node, f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}")
            ):
                yield found


COUNTED = (
    "rows batches shards workers attempts files texts tokens vectors messages jobs engines processes children cores "
    "bytes characters columns lines values parts runs sizes seconds minutes hours days splits names dimensions"
)
PLURAL = re.compile(rf"(…|%d) (?:[a-z]+ ){{0,2}}(?:{'|'.join(COUNTED.split())})\b(?!/s)")
NEVER_ONE = {
    "CALIBRATION_ROWS", "_LEAST_ROWS", "_MOST_SHARDS", "_NAME_MOST",  # constants
    "dataset", "dtype", "file", "job.form.dtype", "precision",  # no numbers
    "job.id",
    "len(found)", "len(fitting)",  # several, or the message is another
}  # fmt: skip


def test_every_count_agrees_with_its_number() -> None:
    strays = []
    for one in texts():
        ends = [match.start() for match in PLURAL.finditer(one.text)]
        for start in ends:
            number = one.text[:start].count("…")
            if "%d" in one.text or not (one.filled[number] in NEVER_ONE or one.filled[number].startswith("count(")):
                strays.append((one.where, one.text))
    assert not strays, "use contract.words.count"


SETTINGS = {f"EMBEDMILL_{name.upper()}" for name in Settings.model_fields}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"].keys()
ADVICE = re.compile(r"python -m \w|embedmill [a-z]+ |celery -A|EMBEDMILL_|pip install|(?<!\S)--[a-z]")


def unknown_to(text: str) -> Iterator[str]:
    """The settings, extras, commands and flags that a message names and that do not exist."""
    yield from set(re.findall(r"EMBEDMILL_[A-Z_]+\b", text)) - SETTINGS - {"EMBEDMILL_"}
    yield from set(re.findall(r"embedmill\[(\w+)\]", text)) - EXTRAS
    for name, rest in re.findall(r"python -m (\w+)((?: [^\n:;,()]+)?)", text):
        if name not in COMMANDS:
            yield name
            continue
        words, parts = rest.split(), getattr(COMMANDS[name], "commands", {})
        if words and re.fullmatch("[a-z]+", words[0]) and parts and words[0] not in parts:
            yield words[0]
        yield from {word for word in words if word.startswith("--")} - flags(COMMANDS[name])
    every = {"--version"}.union(*map(flags, COMMANDS.values()), *map(flags, map(part, PARTS)))
    yield from set(re.findall(r"(?<![\w(-])--[a-z][a-z-]+", text)) - every


def test_what_a_message_advises_exists() -> None:
    advice = [one for one in texts() if ADVICE.search(one.text)]
    assert len(advice) > 100
    assert not [(one.where, one.text, found) for one in advice for found in unknown_to(one.text)]


@pytest.mark.parametrize(
    "text",
    [
        "set EMBEDMILL_NOTHING", "pip install 'embedmill[none]'", "python -m nothing", "python -m producer nothing",
        "python -m verify --detach", "leave out --nothing",
    ],
)  # fmt: skip
def test_advice_that_does_not_exist_is_found(text: str) -> None:
    assert ADVICE.search(text)
    assert list(unknown_to(text))
