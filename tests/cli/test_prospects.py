"""Which rotations of several databases may make a key: every combination of what two or three databases would do."""

from __future__ import annotations

from itertools import product
from typing import Final

import pytest

from voiceassist_db.cli.prospects import Mode, Prospect, lacking, mode_of
from voiceassist_db.decision import Action, Refusal, Remedy, Step
from voiceassist_db.errors import DatabaseUnavailableError

CONTINUE: Final = Action(Step.CONTINUE, 1, 2)
BEGIN: Final = Action(Step.BEGIN, 2, 3)
COMPLETE: Final = Refusal(Remedy.RETIRE, "complete")
CLOSED: Final = Refusal(Remedy.OTHERS, "another database may need the older key")
LACKS: Final = Refusal(Remedy.RESTORE, "rows need key version 1", frozenset({1}))
UNKNOWN: Final = DatabaseUnavailableError("away")
NEW: Final = Refusal(Remedy.INIT_KEYS, "not registered")
ALL: Final[tuple[Prospect, ...]] = (CONTINUE, BEGIN, COMPLETE, CLOSED, LACKS, UNKNOWN, NEW)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_key_is_made_while_a_database_needs_the_older_one(number: int) -> None:
    """Where one would continue, or lacks a key, none begins; where one is away, none that is complete is called unfinished."""
    for prospects in product(ALL, repeat=number):
        mode = mode_of(prospects)
        assert (mode is Mode.HOLD) == (LACKS in prospects)
        if mode is Mode.BEGIN:
            assert CONTINUE not in prospects
            assert not ({COMPLETE, CLOSED} & set(prospects) and UNKNOWN in prospects)
        else:
            assert {CONTINUE, LACKS, UNKNOWN} & set(prospects)
        assert mode is mode_of(prospects[::-1])


@pytest.mark.parametrize(
    ("prospects", "mode"),
    [
        ((BEGIN, BEGIN), Mode.BEGIN),
        ((BEGIN, UNKNOWN), Mode.BEGIN),
        ((BEGIN, NEW), Mode.BEGIN),
        ((COMPLETE, COMPLETE), Mode.BEGIN),  # each refuses, and says to retire first
        ((COMPLETE, CONTINUE), Mode.FINISH),
        ((COMPLETE, UNKNOWN), Mode.FINISH),
        ((CLOSED, UNKNOWN), Mode.FINISH),
        ((CLOSED, COMPLETE), Mode.BEGIN),
        ((BEGIN, LACKS), Mode.HOLD),
        ((CONTINUE, LACKS), Mode.HOLD),
    ],
)
def test_what_a_fleet_does(prospects: tuple[Prospect, ...], mode: Mode) -> None:
    """The cases that occur."""
    assert mode_of(prospects) is mode


def test_the_databases_that_lack_a_key_are_named() -> None:
    """So that an operator can restore their key, or leave them out."""
    assert lacking({"a": BEGIN, "b": LACKS, "c": UNKNOWN, "d": LACKS}) == ["b", "d"]
