"""What messages and documents tell a reader to run exists: each command of ours, with its options."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

import voiceassist_db
from tests.cli.commands import every_command
from tests.cli.conftest import ROOT
from voiceassist_db import commands

DOCUMENTS: Final = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
PACKAGE: Final = Path(voiceassist_db.__file__).parent
NAMED: Final = re.compile(r"(?:^|[`/\s;(|])(voiceassist-db [a-z][^`\n;|)#]*|rotate_keys\.py[^`\n;|)#]*)")
"""A command line of ours, to the end of its quotation or of its part of a line."""

GONE: Final = re.compile(r"rotate_keys\.py|alembic upgrade head\b")
"""What only a checkout has: no message may name it as the next step."""


def texts(source: str) -> Iterator[str]:
    """Yield the texts of a module, but for docstrings, with what ``commands`` holds in the place of its names."""
    tree = ast.parse(source)
    told = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(_part(each) for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


def _part(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.FormattedValue)
    name = node.value.id if isinstance(node.value, ast.Name) else ""
    return str(getattr(commands, name, "…"))


def problem_with(line: str) -> str | None:
    """Return what of a command line does not exist."""
    words = shlex.split(line.replace("'", "").replace('"', "").replace("[", "").replace("]", ""))
    known = every_command()
    name, *rest = words
    if name == "voiceassist-db":
        name, rest = f"{name} {rest[0].rstrip('.,:')}", rest[1:]
    if name not in known:
        return f"there is no command {name}"
    options = {each for parameter in known[name].params for each in (*parameter.opts, *parameter.secondary_opts)} | {
        "-h",
        "--help",
    }
    if name == "voiceassist-db dev" and "--" in rest:
        rest = rest[: rest.index("--")]
    for word in (each.rstrip(".,:") for each in rest):
        if word.startswith("--") and word.partition("=")[0] not in options:
            return f"{name} has no option {word}"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_commands_that_exist(document: Path) -> None:
    """A reader copies them; a renamed option would fail there first."""
    lines = [found.strip() for found in NAMED.findall(document.read_text(encoding="utf-8"))]
    assert {line: problem for line in lines if (problem := problem_with(line))} == {}


def test_messages_name_commands_that_exist_in_the_package() -> None:
    """Whoever installed the wheel has no script and no alembic.ini, so no message sends them there."""
    found = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "_migrations" in path.parts or not (
            GONE.search(source) or "voiceassist-db " in source or "commands import" in source
        ):
            continue
        for told in texts(source):
            assert not GONE.search(told), (path, told)
            lines = [line.strip() for line in re.findall(r"`(voiceassist-db [a-z][^`…]*)`", told)]
            found += len(lines)
            assert {line: problem for line in lines if (problem := problem_with(line))} == {}, path
    assert found > 25


@pytest.mark.parametrize("name", [name for name in vars(commands) if name.isupper()])
def test_each_name_of_a_command_is_one(name: str) -> None:
    """The words that messages share are a command and options that it has."""
    assert problem_with(getattr(commands, name)) is None


def test_what_does_not_exist_is_found() -> None:
    """The reading of command lines is not blind."""
    assert problem_with("voiceassist-db rotate --retire") == "voiceassist-db rotate has no option --retire"
    assert problem_with("voiceassist-db turn") == "there is no command voiceassist-db turn"
    assert isinstance(every_command()["rotate_keys.py"], click.Command)
    assert NAMED.findall("run `voiceassist-db retire --grace-days 0` now; a/rotate_keys.py --x") == [
        "voiceassist-db retire --grace-days 0",
        "rotate_keys.py --x",
    ]
