"""A secret in memory, its databases, and what each truly needs: for walks over its list of databases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from voiceassist_db.keyring import history
from voiceassist_db.keyring.members import (
    Here,
    Member,
    done_with,
    done_with_index,
    entries,
    joined,
    listing,
    members,
    needed_by,
    needing,
)
from voiceassist_db.keys import Key, KeySet


@dataclass
class Kept:
    """A key store of one secret in memory, which keeps every version of it."""

    versions: list[KeySet] = field(default_factory=list)

    def put(self, keys: KeySet) -> None:
        """Store a version."""
        self.versions.append(replace(keys, revision=len(self.versions) + 1))

    def fetch(self) -> KeySet:
        return self.versions[-1]

    create = put

    def replace(self, old: KeySet, new: KeySet) -> None:
        assert old.revision == self.versions[-1].revision
        self.put(new)

    def earlier(self, revision: int) -> KeySet | None:
        return self.versions[revision - 1]

    def restoring(self, revision: int) -> str:
        return f"roll back to {revision}"

    def adding(self, revision: int, field: str, version: int) -> str:
        return f"add {field} of {revision}"


@dataclass
class World:
    """A secret, its databases, and what each truly needs."""

    secret: Kept
    databases: list[Here]
    rules: Any = history
    """The module that completes a list."""
    oldest: dict[UUID, int] = field(default_factory=dict)
    """The oldest version that a database has rows under; without those that no longer exist."""
    index: dict[UUID, bool] = field(default_factory=dict)
    """Whether a database needs the current blind-index key only."""

    def write(self, change: Callable[[KeySet], KeySet]) -> None:
        """Write the secret, as a tool does."""
        held = self.secret.fetch()
        self.secret.put(change(self.rules.completed(self.secret, held)))


STEPS = ("join", "forget", "rotate", "retire", "restore", "index", "roll back", "empty", "drop")


def step(world: World, name: str, number: int) -> None:
    """Do one step with a database: of a tool, or by hand."""
    database, keys = world.databases[number % len(world.databases)], world.secret.fetch()
    is_live = database.id in world.oldest
    if name == "join" and not is_live:
        world.write(lambda held: joined(held, database))
        world.oldest[database.id] = keys.previous_version or keys.version
        world.index[database.id] = keys.previous_index_key is None
    elif name == "forget" and is_live and len(world.oldest) > 1:
        world.write(lambda held: listing(held, _forgotten(held, database.id)))
        del world.oldest[database.id]
    elif name == "rotate" and keys.previous_version is None:
        new = replace(keys, version=keys.version + 1, key=Key.generate())
        pair = (new.version, new.key, keys.version, keys.key)
        world.write(
            lambda held: replace(held, version=pair[0], key=pair[1], previous_version=pair[2], previous_key=pair[3])
        )
    elif name == "retire" and is_live and keys.previous_version is not None:
        world.write(lambda held: done_with(held, database, held.version))
        world.oldest[database.id] = keys.version
    elif name == "restore" and is_live and keys.previous_version is not None:
        world.write(lambda held: needing(held, database, held.previous_version or 0))
        world.oldest[database.id] = keys.previous_version
    elif name == "index" and is_live:
        if keys.previous_index_key is None:
            made = Key.generate()
            world.write(lambda held: replace(held, index_key=made, previous_index_key=held.index_key))
            world.index = dict.fromkeys(world.index, False)
        else:
            world.write(lambda held: done_with_index(held, database))
            world.index[database.id] = True
    elif name in {"roll back", "empty", "drop"}:
        by_hand(world, name, number)


def _forgotten(keys: KeySet, identity: UUID) -> dict[UUID, Member]:
    listed = entries(keys)
    return listed | {identity: replace(listed[identity], forgotten_at=keys.revision)}


def by_hand(world: World, name: str, number: int) -> None:
    """Change the secret as somebody does by hand, where its keys stay those of today; then a tool writes it."""
    keys = world.secret.fetch()
    if name == "roll back":
        alike = [each for each in world.secret.versions if _keys_of(each) == _keys_of(keys)]
        world.secret.put(alike[number % len(alike)])
    elif name == "empty":
        world.secret.put(replace(keys, databases=""))
    else:
        left = dict(list(entries(keys).items())[:number])
        world.secret.put(listing(keys, left))
    world.write(lambda held: held)


def _keys_of(keys: KeySet) -> tuple[object, ...]:
    return keys.versions(), keys.index_key, keys.previous_index_key


def walk(steps: Iterable[tuple[str, int]], rules: Any = history) -> None:
    """Do these steps; assert after each that every database is listed with what it needs, and that the secret holds that."""
    databases = [Here(UUID(int=each + 1), f"clinic_{each}") for each in range(3)]
    world = World(Kept(), databases, rules)
    world.secret.put(joined(replace(KeySet.generate(), databases=""), databases[0]))
    world.oldest[databases[0].id], world.index[databases[0].id] = 1, True
    for name, number in steps:
        step(world, name, number)
        keys = world.secret.fetch()
        known = members(keys)
        for identity, oldest in world.oldest.items():
            assert known[identity].oldest <= oldest
            assert oldest in keys.versions()
            assert world.index[identity] or not known[identity].is_done_with_index(keys)
        if keys.previous_version is not None:
            needing_it = {each.name for each in databases if world.oldest.get(each.id) == keys.previous_version}
            assert needing_it <= set(needed_by(keys, None))
