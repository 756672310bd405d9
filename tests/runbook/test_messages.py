"""The runbook's table has a row for every message with which a run can end, and no row for a message that is gone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import pytest

from tests.cli.conftest import ROOT
from tests.runbook.messages import HOLE, Code, Message

RUNBOOK: Final = ROOT / "docs" / "rotation.md"
HEAD: Final = ["what you see", "what it means", "what to do"]

RUN: Final = ("voiceassist_db.cli.rotate_command", "voiceassist_db.cli.init_keys_command")
"""Where a run begins, and ``init-keys``, which is a remedy for many of its messages."""

FEWEST_LETTERS: Final = 5
"""Of what is known of a text. A message with fewer is made of others, such as the texts of several errors."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        sees: The beginnings of messages, with ``…`` for what differs.
        cells: All cells.
    """

    sees: list[str]
    cells: list[str]


def cells_of(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    return [each.strip() for each in line.strip().strip("|").split("|")]


def rows_of(document: str) -> list[Row]:
    """Return the rows of the table of messages; those without a message are headings."""
    lines = iter(document.splitlines())
    assert any(cells_of(line) == HEAD for line in lines), f"{RUNBOOK} has no table | {' | '.join(HEAD)} |"
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = cells_of(line)
        if sees := re.findall(r"`([^`]+)`", cells[0]):
            rows.append(Row(sees, cells))
    return rows


def letters(text: str) -> int:
    """Count the letters of a text."""
    return sum(each.isalpha() for each in text)


def fits(seen: str, message: str) -> bool:
    """Say whether a message begins as a row of the table says, or has that text in it where the row begins with ``…``."""
    parts = [part for each in seen.split(HOLE) if (part := each.strip())]
    if not seen.startswith(HOLE) and not message.strip().startswith(parts[0]):
        return False
    at = 0
    for part in parts:
        if (at := message.find(part, at)) < 0:
            return False
        at += len(part)
    return True


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    """Every message of a run."""
    found = [each for each in Code(*RUN).messages() if letters(each.text) >= FEWEST_LETTERS]
    assert len(found) > 250
    return found


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Every row of the runbook's table."""
    return rows_of(RUNBOOK.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("no rotation is unfinished: nothing to do", id="of a constant"),
        pytest.param(
            "the rotation to key version … is unfinished: finish it first, by running it again", id="of a function"
        ),
        pytest.param("paused: replica … is … s behind", id="of an attribute that methods set"),
        pytest.param("no key is sent behind a pooler outside of a transaction", id="of a parameter"),
        pytest.param("… If another database uses this secret, do not change it", id="of a text that is added"),
        pytest.param("waiting for a lock of …", id="of a list"),
        pytest.param(
            "another process begins or ends a rotation of this database right now: try again in a moment, and see "
            "voiceassist-db status. Locked by: ….",
            id="of several parts",
        ),
    ],
)
def test_texts_are_followed(messages: list[Message], text: str) -> None:
    """From where a message is printed to where its words stand."""
    assert any(each.text.startswith(text) for each in messages)


def test_every_message_has_a_row(messages: list[Message], rows: list[Row]) -> None:
    """Whoever sees a message at night finds what it means and what to do."""
    seen = [each for row in rows for each in row.sees]
    missing = [each for each in messages if not any(fits(one, each.text) for one in seen)]
    told = [f"{each.place}: {each.text}\n    | `{each.text[:60]}` | what it means | what to do |" for each in missing]
    asked = f'the table under "Every message" in {RUNBOOK} lacks these messages. For each, add a row, or its first words to a row'
    assert not missing, "\n".join([f"{asked}:", *told])


def test_every_row_is_of_a_message(messages: list[Message], rows: list[Row]) -> None:
    """A row for a message that was reworded helps nobody."""
    gone = [one for row in rows for one in row.sees if not any(fits(one, each.text) for each in messages)]
    assert not gone, "\n".join(
        [f"no message in the code begins so: change or remove this in the table of {RUNBOOK}:", *gone]
    )


def test_every_row_can_be_read(rows: list[Row]) -> None:
    """Each row has its three cells, and none fits whatever is printed; no beginning stands in two rows."""
    for row in rows:
        assert len(row.cells) == len(HEAD), row.cells
        assert all(row.cells), row.cells
        assert all(letters(each) >= FEWEST_LETTERS for each in row.sees), row.sees
    seen = [each for row in rows for each in row.sees]
    assert len(seen) == len(set(seen))
