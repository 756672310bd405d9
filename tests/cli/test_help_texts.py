"""Every help text, of every command that there is, at the widths of terminals that people have."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from typing import Final
from unittest.mock import patch

import click
import pytest

from tests.cli.commands import SCRIPTS, every_command
from voiceassist_db.cli.explaining import Command

COMMANDS: Final = every_command()
WIDTHS: Final = (60, 80, 120)

CODE: Final = re.compile(r"(?<=[:;] )\d [a-z]")
"""An exit code with its meaning in the midst of a sentence."""

everywhere = pytest.mark.parametrize("width", WIDTHS)
each = pytest.mark.parametrize("name", COMMANDS)


@functools.cache
def shown(name: str, width: int) -> str:
    """Return a help text as a terminal of this width shows it."""
    # Not by click's CliRunner, which sets a width of its own.
    with patch.dict(os.environ, {"COLUMNS": str(width)}):
        return COMMANDS[name].make_context(name, [], resilient_parsing=True).get_help() + "\n"


def words(text: str) -> list[str]:
    """Return what a reader would copy: words as they stand between blanks."""
    return text.split()


def test_every_command_is_found() -> None:
    """The commands of the group and the two scripts are among what is checked."""
    assert {"voiceassist-db", "voiceassist-db dev", "rotate_keys.py", "benchmark.py"} <= set(COMMANDS)
    assert len(COMMANDS) == 12 + len(SCRIPTS)


@everywhere
@each
def test_a_help_text_fits_and_shows_no_markup(name: str, width: int) -> None:
    """No line is cut by the terminal, and neither a backslash with a b nor a character that acts is printed."""
    text = shown(name, width)
    assert [line for line in text.splitlines() if len(line) > width or line != line.rstrip()] == []
    assert r"\b" not in text
    assert {unicodedata.category(character) for character in text if character != "\n"}.isdisjoint({"Cc", "Cf"})
    assert text.isascii(), "every terminal can show it"


@everywhere
@each
def test_nothing_is_lost_or_broken(name: str, width: int) -> None:
    """Each sentence of the docstring and of every option is there, with every word in one piece."""
    command, text = COMMANDS[name], " ".join(words(shown(name, width)))
    assert command.help is not None
    for paragraph in command.help.split("\n\n"):
        assert " ".join(words(paragraph)) in text
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert " ".join(words(option.help)) in text
    if isinstance(command, Command):
        for example in command.examples:
            assert f"\n  {example}\n" in shown(name, width)


@everywhere
@each
def test_each_exit_code_has_its_own_line(name: str, width: int) -> None:
    """A list that is joined into a paragraph cannot be searched at three in the morning."""
    command, text = COMMANDS[name], shown(name, width)
    assert CODE.findall(text) == []
    if not isinstance(command, Command) or not command.exit_codes:
        assert "Exit codes" not in text
        return
    section = text.partition("\nExit codes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^  (\d)  (.+(?:\n {5}.+)*)", section, re.MULTILINE)
    assert {int(code): " ".join(words(meaning)) for code, meaning in entries} == command.exit_codes
