"""Writes of the secret that keep its list of databases complete.

Owns the check-and-set loop, and the removal of a database that no longer exists. Knows nothing of a rotation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final
from uuid import UUID

from voiceassist_db.errors import ConfigurationError, KeyStoreConflictError
from voiceassist_db.keyring.history import completed
from voiceassist_db.keyring.members import Here, Member, entries, joined, listing, members
from voiceassist_db.keys import KeyProvider, KeySet

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 20
"""Writes that are tried while other processes write the same secret: each of them, too, writes a few times and ends."""


def store(provider: KeyProvider, change: Callable[[KeySet], KeySet]) -> KeySet:
    """Change what the key store holds by check-and-set, again while others write it meanwhile; return what it holds then.

    Databases that an earlier version of the secret lists come back into its list.

    Args:
        provider: The key store.
        change: Returns what it shall hold, for what it holds. It may be called several times, and may raise.

    Raises:
        KeyStoreConflictError: Others write it again and again.
    """
    conflict: KeyStoreConflictError | None = None
    for _ in range(ATTEMPTS):
        held = provider.fetch()
        wanted = change(completed(provider, held))
        if wanted == held:
            return held
        try:
            provider.replace(held, wanted)
        except KeyStoreConflictError as error:
            conflict = error
            continue
        if held.databases is not None and not members(held) and members(wanted):
            _tell_of_list(wanted)
        return provider.fetch()
    assert conflict is not None  # there is at least one attempt
    raise conflict


def enlist(provider: KeyProvider, databases: Iterable[Here]) -> Mapping[UUID, Member] | None:
    """Add databases that have registered the keys to the list, those that are not in it.

    Returns:
        The list; None where the key store keeps none.
    """

    def change(keys: KeySet) -> KeySet:
        listed = members(keys)
        for here in databases:
            keys = keys if here.id in listed else joined(keys, here)
        return keys

    left = store(provider, change)
    return None if left.databases is None else members(left)


def _tell_of_list(keys: KeySet) -> None:
    names = "; ".join(each.name for each in members(keys).values())
    logger.warning(
        "the key store lists from now on which databases use its keys: %s. If another database uses them, run `voiceassist-db init-keys` "
        "there before a key is retired.",
        names,
    )


def forget(provider: KeyProvider, here: Here | None, which: str) -> tuple[Member, KeySet]:
    """Remove a database that no longer exists from the list; return what was removed, and what the key store holds then.

    Args:
        provider: The key store.
        here: The database of this process, which does exist.
        which: The identity or the name of the other one.

    Raises:
        ConfigurationError: It is not listed, several have that name, or it is this one.
    """
    removed: list[Member] = []

    def change(keys: KeySet) -> KeySet:
        listed = members(keys)
        found = [each for each, member in listed.items() if which in {str(each), member.name}]
        if len(found) != 1:
            known = "; ".join(f"{member.name} ({each})" for each, member in listed.items()) or "none"
            raise ConfigurationError(
                f"{'several databases are' if found else 'no database is'} called {which} in the key store. Name one by its identity. It "
                f"lists {known}. Nothing was changed."
            )
        if here is None or here.id not in listed:
            raise ConfigurationError(
                f"{which} cannot be forgotten here, because the key store does not list this database: run `voiceassist-db init-keys` first. "
                "Nothing was changed."
            )
        if found[0] == here.id:
            raise ConfigurationError(
                f"{which} cannot be forgotten here: let DATABASE_URL name another database that uses the same keys. Nothing was changed."
            )
        removed[:] = [listed[found[0]]]
        return listing(keys, entries(keys) | {found[0]: replace(removed[0], forgotten_at=keys.revision)})

    now = store(provider, change)
    return removed[0], now
