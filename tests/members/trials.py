"""Trials of ``keyring.history`` and ``keyring.listing`` in memory: each holds a rule of who needs which key."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest

from tests.members.world import STEPS, Kept, walk
from voiceassist_db.errors import (
    ConfigurationError,
    KeyStoreConflictError,
    KeyStoreForbiddenError,
    KeyStoreUnavailableError,
    MalformedKeyError,
)
from voiceassist_db.keyring import history, listing
from voiceassist_db.keyring.members import Here, Member, entries, joined, members
from voiceassist_db.keyring.members import listing as with_list
from voiceassist_db.keys import Key, KeySet

ONE, TWO, THREE = (Here(UUID(int=number), name) for number, name in enumerate(("one", "two", "three"), 1))


@dataclass
class Rules:
    """The two modules, or mutants of them."""

    history: Any = history
    listing: Any = listing


@contextmanager
def heard(module: Any) -> Iterator[list[str]]:
    """Give the warnings of a module."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    module.logger.addHandler(handler)
    try:
        yield told
    finally:
        module.logger.removeHandler(handler)


def first_keys(*databases: Here) -> KeySet:
    """Return new keys that these databases use."""
    keys = replace(KeySet.generate(), databases="")
    for each in databases:
        keys = joined(keys, each)
    return keys


def stored(*versions: KeySet) -> Kept:
    """Return a secret with these versions, the newest last."""
    store = Kept()
    for each in versions:
        store.put(each)
    return store


def rotated(keys: KeySet) -> KeySet:
    """Return the keys with a new one beside the last."""
    return replace(
        keys, version=keys.version + 1, key=Key.generate(), previous_version=keys.version, previous_key=keys.key
    )


def entry(keys: KeySet, database: Here) -> Member:
    """Return what the list says of a database."""
    return entries(keys)[database.id]


@dataclass
class Refusing:
    """The key store of a login that may read the newest version only, or that is away for the others."""

    held: KeySet
    error: Exception
    asked: list[int] = field(default_factory=list)

    def fetch(self) -> KeySet:
        return self.held

    def create(self, keys: KeySet) -> None:
        raise AssertionError

    def replace(self, old: KeySet, new: KeySet) -> None:
        raise AssertionError

    def earlier(self, revision: int) -> KeySet | None:
        self.asked.append(revision)
        raise self.error

    def restoring(self, revision: int) -> str:
        raise AssertionError

    def adding(self, revision: int, field: str, version: int) -> str:
        raise AssertionError


class Spoilt(Kept):
    """A key store some of whose versions are gone (None), or cannot be read."""

    def earlier(self, revision: int) -> KeySet | None:
        if revision == 2:
            raise MalformedKeyError("no")
        return None if revision == 3 else super().earlier(revision)


class Busy(Kept):
    """A key store that another process writes, so often, right before this one does."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def replace(self, old: KeySet, new: KeySet) -> None:
        if self.times:
            self.times -= 1
            raise KeyStoreConflictError("somebody was first")
        super().replace(old, new)


def a_walk_by_tools_and_by_hand(rules: Rules) -> None:
    """Whatever is done, every database is listed with what it needs."""
    chance = random.Random(13)  # noqa: S311  # of a walk
    for _ in range(60):
        walk([(chance.choice(STEPS), chance.randrange(10)) for _ in range(14)], rules.history)


def a_history_that_cannot_be_read(rules: Rules) -> None:
    """A login that may not read it finds nothing, and asks once. An outage is no empty history: nothing is decided without an answer."""
    held = replace(first_keys(), revision=3)
    for error, asks in ((KeyStoreForbiddenError("no"), [2]), (MalformedKeyError("no"), [2, 1])):
        store = Refusing(held, error)
        assert rules.history.completed(store, held) == held
        assert store.asked == asks
    with pytest.raises(KeyStoreUnavailableError):
        rules.history.completed(Refusing(held, KeyStoreUnavailableError("away")), held)


def a_version_that_cannot_be_read(rules: Rules) -> None:
    """A malformed version and a destroyed one do not hide those before them."""
    store, keys = Spoilt(), first_keys(ONE)
    for each in (joined(keys, TWO), keys, keys, keys):
        store.put(each)
    assert set(members(rules.history.completed(store, store.fetch()))) == {ONE.id, TWO.id}


def a_long_history(rules: Rules) -> None:
    """The search reads as many versions as it says, and no more."""
    keys = first_keys(ONE)
    for later, found in ((rules.history.SEARCHED, {ONE.id, TWO.id}), (rules.history.SEARCHED + 1, {ONE.id})):
        store = stored(joined(keys, TWO), *[keys] * later)
        assert set(members(rules.history.completed(store, store.fetch()))) == found
    assert rules.history.SEARCHED >= 10  # which KV v2 keeps


def a_store_without_history(rules: Rules) -> None:
    """Keys of the environment have no earlier version."""
    keys = first_keys(ONE)
    assert list(rules.history.earlier_versions(object(), replace(keys, revision=3))) == []


def another_secret_at_the_same_path(rules: Rules) -> None:
    """Somebody wrote the first keys of a new deployment over an old secret: its databases do not come back."""
    store = stored(first_keys(ONE), first_keys(TWO))
    assert rules.history.past(store, store.fetch()) == []
    assert rules.history.completed(store, store.fetch()) == store.fetch()


def keys_through_every_rotation(rules: Rules) -> None:
    """The oldest version has no key in common with the newest one, but each has one with its neighbour."""
    keys = replace(first_keys(ONE), index_key=None)
    versions = [keys]
    for _ in range(2):
        keys = replace(rotated(keys), databases="")
        versions.append(keys)
        keys = replace(keys, previous_version=None, previous_key=None)
        versions.append(keys)
    store = stored(*versions)
    assert len(rules.history.past(store, store.fetch())) == 4
    assert set(members(rules.history.completed(store, store.fetch()))) == {ONE.id}


def keys_of_every_kind_relate(rules: Rules) -> None:
    """A version with one key in common is of this secret, whichever key it is."""
    old = first_keys(ONE)
    new = first_keys()
    for shared in (
        replace(new, index_key=old.index_key),
        replace(new, index_key=None, previous_index_key=old.index_key),
        replace(new, version=2, previous_version=1, previous_key=old.key),
    ):
        store = stored(old, shared)
        assert set(members(rules.history.completed(store, store.fetch()))) == {ONE.id}


def who_comes_back_is_told(rules: Rules) -> None:
    """A warning names the databases that the list has again, and nobody else; a list that is complete says nothing."""
    keys = first_keys(ONE)
    store = stored(joined(keys, TWO), keys)
    with heard(rules.history) as told:
        rules.history.completed(store, store.fetch())
    assert len(told) == 1
    assert "the secret lists again: two." in told[0]
    store = stored(keys, joined(keys, TWO))
    with heard(rules.history) as told:
        assert rules.history.completed(store, store.fetch()) is store.fetch()
    assert told == []


def a_store_that_keeps_no_list(rules: Rules) -> None:
    """It gets none from an earlier version."""
    keys = first_keys(ONE)
    store = stored(keys, replace(keys, databases=None))
    assert rules.history.completed(store, store.fetch()).databases is None


def an_earlier_list_that_is_spoilt(rules: Rules) -> None:
    """It says nothing, and those before it still do."""
    keys = first_keys(ONE)
    store = stored(joined(keys, TWO), replace(keys, databases="{"), keys)
    assert set(members(rules.history.completed(store, store.fetch()))) == {ONE.id, TWO.id}


def the_newest_entry_counts(rules: Rules) -> None:
    """A database that is missing comes back as the newest version says."""
    keys = first_keys(ONE, TWO)
    done = with_list(keys, entries(keys) | {TWO.id: Member("two", 5)})
    store = stored(keys, done, with_list(keys, {ONE.id: entry(keys, ONE)}))
    assert entry(rules.history.completed(store, store.fetch()), TWO).oldest == 5


def what_a_list_says_today_counts(rules: Rules) -> None:
    """Without a rollback, an earlier entry changes none that is listed."""
    keys = first_keys(ONE, TWO)
    done = with_list(keys, entries(keys) | {TWO.id: Member("two", 5, "ab")})
    store = stored(keys, done)
    assert rules.history.completed(store, store.fetch()) is store.fetch()


def what_a_rollback_undid_counts(rules: Rules) -> None:
    """After one, a database needs what either list says: a key that it was done with, and one that it needs again."""
    keys = first_keys(ONE, TWO, THREE)
    before = with_list(keys, entries(keys) | {TWO.id: Member("two", 5, "ab"), THREE.id: Member("three", 2, "ab")})
    undone = with_list(
        keys,
        entries(keys) | {TWO.id: Member("two", 3, "ab"), THREE.id: Member("three", 4, "cd", forgotten_at=2)},
    )
    store = stored(before, undone, before)
    left = rules.history.completed(store, store.fetch())
    assert entry(left, TWO) == Member("two", 3, "ab")
    assert entry(left, THREE) == Member("three", 2)  # which somebody listed again by the rollback
    forgotten = with_list(before, entries(before) | {THREE.id: Member("three", 2, "ab", forgotten_at=1)})
    store = stored(forgotten, with_list(undone, entries(undone)), forgotten)
    assert entry(rules.history.completed(store, store.fetch()), THREE).forgotten_at is not None
    store = stored(undone, before, undone, before, before)  # only the last rollback, however often it was written since
    assert entry(rules.history.completed(store, store.fetch()), TWO).oldest == 3
    store = stored(undone, before, before)  # and here was none
    assert rules.history.completed(store, store.fetch()) is store.fetch()


def a_new_key_of_others_is_known(rules: Rules) -> None:
    """After a rollback, other databases may be under the newest key that a version had which lists them; this one says so itself."""
    keys = first_keys(ONE, TWO)
    second = rotated(keys)
    third = rotated(replace(second, previous_version=None, previous_key=None))
    without = with_list(third, {ONE.id: entry(keys, ONE), THREE.id: Member("three", 1)})
    store = stored(keys, second, third, without, keys)
    found, earlier = store.fetch(), rules.history.past(store, store.fetch())
    assert rules.history.undone_for(found, ONE, earlier) == (("two", 3),)
    assert dict(rules.history.undone_for(found, None, earlier)) == {"one": 3, "two": 3}
    store = stored(keys, second, third, third)
    assert rules.history.undone_for(store.fetch(), ONE, rules.history.past(store, store.fetch())) == ()


def a_new_index_key_of_others_is_known(rules: Rules) -> None:
    """The same for the key of the search tokens."""
    keys = first_keys(ONE, TWO)
    index = replace(keys, index_key=Key.generate(), previous_index_key=keys.index_key)
    without = with_list(index, entries(index) | {THREE.id: Member("three", 1)})
    store = stored(keys, without, keys)
    found, earlier = store.fetch(), rules.history.past(store, store.fetch())
    assert rules.history.index_undone_for(found, ONE, earlier) == ("two",)
    assert set(rules.history.index_undone_for(found, None, earlier)) == {"one", "two"}
    store = stored(keys, index)
    assert rules.history.index_undone_for(store.fetch(), ONE, rules.history.past(store, store.fetch())) == ()
    bare = replace(keys, index_key=None)
    store = stored(bare, rotated(bare), bare)
    assert rules.history.index_undone_for(store.fetch(), ONE, rules.history.past(store, store.fetch())) == ()


def a_write_completes_the_list(rules: Rules) -> None:
    """Vault forgets old versions, so every write puts back who is missing; where nothing changes, nothing is written."""
    keys = first_keys(ONE)
    store = stored(joined(keys, TWO), keys)
    left = rules.listing.store(store, lambda held: held)
    assert (set(members(left)), left.revision) == ({ONE.id, TWO.id}, 3)
    assert rules.listing.store(store, lambda held: held).revision == 3


def a_write_that_comes_second(rules: Rules) -> None:
    """What another process wrote is read, and the change is made to that; some other time it is given up."""
    for times in (1, rules.listing.ATTEMPTS - 1):
        store = Busy(times)
        store.put(first_keys(ONE))
        assert set(members(rules.listing.store(store, lambda held: joined(held, TWO)))) == {ONE.id, TWO.id}
    store = Busy(rules.listing.ATTEMPTS)
    store.put(first_keys(ONE))
    with pytest.raises(KeyStoreConflictError):
        rules.listing.store(store, lambda held: joined(held, TWO))


def a_list_that_begins_is_told(rules: Rules) -> None:
    """The first database is told to look for others: their keys could go. The second is not, and a store without a list says nothing."""
    store = stored(first_keys())
    with heard(rules.listing) as told:
        rules.listing.enlist(store, [ONE])
        assert [each for each in told if "lists from now on" in each and " one." in each] == told
        assert len(told) == 1
        rules.listing.enlist(store, [TWO])
        assert len(told) == 1
    store = stored(replace(first_keys(), databases=None))
    with heard(rules.listing) as told:
        assert rules.listing.enlist(store, [ONE]) is None
        rules.listing.store(store, lambda held: replace(held, databases=first_keys(ONE).databases))
    assert told == []


def who_is_listed_stays_as_listed(rules: Rules) -> None:
    """A database that has closed a key is not made to need it again by being named once more."""
    keys = rotated(first_keys(ONE))
    done = with_list(keys, {ONE.id: Member("one", 2)})
    store = stored(done)
    listed = rules.listing.enlist(store, [ONE, TWO])
    assert {each.name: each.oldest for each in listed.values()} == {"one": 2, "two": 1}


def a_database_is_forgotten(rules: Rules) -> None:
    """By its name or its identity, with a mark that keeps it away; not one of two of a name, not this one, and not by a stranger."""
    for which in (TWO.name, str(TWO.id)):
        store = stored(first_keys(ONE, TWO), first_keys(ONE, TWO))
        removed, left = rules.listing.forget(store, ONE, which)
        assert (removed.name, set(members(left)), entry(left, TWO).forgotten_at) == ("two", {ONE.id}, 2)
        assert rules.listing.store(store, lambda held: held).revision == left.revision
    keys = first_keys(ONE, TWO)
    twice = with_list(keys, entries(keys) | {THREE.id: Member("two", 1)})
    for found, here, which, why in (
        (twice, ONE, "two", "several databases are called two"),
        (keys, ONE, "four", "no database is called four"),
        (keys, ONE, "one", "let DATABASE_URL name another database"),
        (keys, None, "two", "does not list this database"),
        (keys, THREE, "two", "does not list this database"),
    ):
        store = stored(found)
        with pytest.raises(ConfigurationError, match=why):
            rules.listing.forget(store, here, which)
        assert store.fetch().revision == 1


TRIALS: list[Callable[[Rules], None]] = [
    a_walk_by_tools_and_by_hand,
    a_history_that_cannot_be_read,
    a_version_that_cannot_be_read,
    a_long_history,
    a_store_without_history,
    another_secret_at_the_same_path,
    keys_through_every_rotation,
    keys_of_every_kind_relate,
    who_comes_back_is_told,
    a_store_that_keeps_no_list,
    an_earlier_list_that_is_spoilt,
    the_newest_entry_counts,
    what_a_list_says_today_counts,
    what_a_rollback_undid_counts,
    a_new_key_of_others_is_known,
    a_new_index_key_of_others_is_known,
    a_write_completes_the_list,
    a_write_that_comes_second,
    a_list_that_begins_is_told,
    who_is_listed_stays_as_listed,
    a_database_is_forgotten,
]
