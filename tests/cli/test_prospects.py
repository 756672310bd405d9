"""Which rotations of several databases may make a key: every combination of what two or three databases would do."""

from __future__ import annotations

import socket
from itertools import product
from typing import Final
from uuid import uuid4

import pytest

from voiceassist_db.cli.prospects import Look, Mode, Prospect, lacking, mode_of, need, unlisted, without_copies
from voiceassist_db.decision import Action, Refusal, Remedy, Step
from voiceassist_db.errors import DatabaseUnavailableError
from voiceassist_db.keyring.members import Here, Member

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
    found: dict[str, Prospect] = {"a": BEGIN, "b": LACKS, "c": UNKNOWN, "d": LACKS}
    assert lacking({name: Look(None, prospect) for name, prospect in found.items()}) == ["b", "d"]


def test_only_users_of_the_secret_are_added_to_its_list() -> None:
    """A database of another secret, named by mistake, would keep every later key from being retired."""
    assert {each for each in ALL if Look(None, each).uses_secret} == {CONTINUE, BEGIN, COMPLETE, CLOSED}
    assert not Look(None, Refusal(Remedy.JOIN, "another database's keys")).uses_secret


def test_one_identity_is_one_database() -> None:
    """A copy, or a second spelling of an address: both are refused, with both names, and the others are not."""
    one, two = Here(uuid4(), "one"), Here(uuid4(), "two")
    looks = {"a": Look(one, BEGIN), "b": Look(two, BEGIN), "c": Look(one, CONTINUE), "d": Look(None, UNKNOWN)}
    found = without_copies(looks)
    assert list(found) == list(looks)
    assert (found["b"], found["d"]) == (looks["b"], looks["d"])
    for name in ("a", "c"):
        assert str(found[name].prospect).startswith("a and c have the same identity")
        assert not found[name].uses_secret


def test_a_key_ends_only_for_databases_that_are_listed() -> None:
    """By identity; one that cannot be asked, by its name, whatever the spelling of its server."""
    here = Here(uuid4(), "a on db1:5432")
    names = ("Clinic on db2.example.org:5432", f"main on {socket.gethostname()}:5433", "on on db3:1")
    listed = {uuid4(): Member(name, 1) for name in names} | {here.id: Member("another name", 1)}
    found = {
        "a on db1:5432": Look(here, BEGIN),
        "Clinic on DB2.example.org:5432": Look(None, UNKNOWN),
        "main on /var/run:5433": Look(None, UNKNOWN),
        "on on db3:1": Look(None, UNKNOWN),
    }
    assert unlisted(found, listed) == []
    assert unlisted({"main on the default host:5433": Look(None, UNKNOWN)}, listed) == []
    for name in ("clinic on db2.example.org:5432", "Clinic on db2.example.org:1", "main on the default host:5432"):
        assert unlisted({name: Look(None, UNKNOWN)}, listed) == [name]
    assert unlisted({names[0]: Look(Here(uuid4(), names[0]), NEW)}, listed) == [names[0]]


def test_one_database_needs_and_several_need() -> None:
    """The message is a sentence for any number of them."""
    assert [need(["a"]), need(["a", "b"]), need(["a", "b", "c"])] == ["a needs", "a and b need", "a, b and c need"]
