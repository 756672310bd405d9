"""What earlier versions of the secret still say, where somebody brought one of them back.

``vault kv rollback`` brings an old list of databases back with the old keys: a database that joined later is missing there, and a key
could leave the secret while that database needs it. So the list is completed from the versions that the key store keeps.

Owns the search in the history and these rules. Writes nothing. What was destroyed, or is too old to be kept, cannot be found.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

from voiceassist_db.errors import KeyStoreForbiddenError, MalformedKeyError
from voiceassist_db.keyring.members import Here, Member, entries, listing, members
from voiceassist_db.keys import Key, KeyHistory, KeyProvider, KeySet

logger = logging.getLogger(__name__)

SEARCHED: Final = 30
"""How many earlier versions of the secret are read. KV v2 keeps 10, unless it is configured otherwise."""


def earlier_versions(provider: KeyProvider, keys: KeySet) -> Iterator[KeySet]:
    """Yield the earlier versions of the secret that can be read, the newest first.

    Raises:
        KeyStoreError: The key store does not answer. A login that may read the newest version only finds none.
    """
    if not isinstance(provider, KeyHistory):
        return
    for revision in range(keys.revision - 1, max(0, keys.revision - 1 - SEARCHED), -1):
        try:
            earlier = provider.earlier(revision)
        except MalformedKeyError:
            continue
        except KeyStoreForbiddenError:
            return
        if earlier is not None:
            yield earlier


def past(provider: KeyProvider, keys: KeySet) -> list[KeySet]:
    """Return the earlier versions whose keys lead to those of today, the newest first: another secret may have been at this path.

    Raises:
        KeyStoreError: The key store does not answer.
    """
    found = list(earlier_versions(provider, keys))
    related = [keys]
    while new := [one for one in found if not _is_in(one, related) and any(_share(one, each) for each in related)]:
        related += new
    return [each for each in found if _is_in(each, related)]


def _is_in(keys: KeySet, related: Sequence[KeySet]) -> bool:
    return any(each.revision == keys.revision for each in related)


def _share(one: KeySet, other: KeySet) -> bool:
    return any(key == each for key in _keys(one) for each in _keys(other))


def _keys(keys: KeySet) -> list[Key]:
    given = (keys.key, keys.previous_key, keys.index_key, keys.previous_index_key)
    return [each for each in given if each is not None]


def completed(provider: KeyProvider, keys: KeySet) -> KeySet:
    """Return the keys with every database in their list that an earlier version lists, unless an operator has forgotten it.

    Raises:
        MalformedKeyError: The list is not of its form.
        KeyStoreError: The key store does not answer.
    """
    if keys.databases is None:
        return keys
    left = completed_from(keys, past(provider, keys))
    if returned := [member.name for each, member in members(left).items() if each not in members(keys)]:
        logger.warning(
            "the secret lists again: %s. Its list of databases was rolled back or changed by hand, and an earlier version has more. If a "
            "database no longer exists, remove it by `voiceassist-db init-keys --forget DATABASE`.",
            "; ".join(returned),
        )
    return left


def completed_from(keys: KeySet, earlier: Sequence[KeySet]) -> KeySet:
    """Return the same for earlier versions that were read, the newest first."""
    listed = entries(keys)
    told = dict(listed)
    for identity, member in _told(_undone(keys, earlier)).items():
        told[identity] = _either(listed[identity], member) if identity in listed else member
    for identity, member in _told(earlier).items():
        told.setdefault(identity, member)
    return keys if told == listed else listing(keys, told)


def _told(earlier: Sequence[KeySet]) -> dict[UUID, Member]:
    """Return the newest entry of each database."""
    found: dict[UUID, Member] = {}
    for keys in earlier:
        for identity, member in listed_in(keys).items():
            found.setdefault(identity, member)
    return found


def listed_in(keys: KeySet) -> dict[UUID, Member]:
    """Return the entries of an earlier version; none where its list is not of its form."""
    try:
        return entries(keys)
    except MalformedKeyError:
        return {}


def _undone(keys: KeySet, earlier: Sequence[KeySet]) -> Sequence[KeySet]:
    """Return the versions that a rollback has undone, where the newest one is the copy of an earlier one."""
    is_same = [replace(each, revision=keys.revision) == keys for each in earlier]
    if False not in is_same or True not in is_same[(changed := is_same.index(False)) :]:
        return ()
    return earlier[changed : is_same.index(True, changed)]


def _either(one: Member, other: Member) -> Member:
    """Return an entry that needs what either of two entries of a database needs."""
    index = one.index if one.index == other.index else None
    return Member(one.name, min(one.oldest, other.oldest), index, other.forgotten_at and one.forgotten_at)


def undone_for(keys: KeySet, here: Here | None, earlier: Sequence[KeySet]) -> tuple[tuple[str, int], ...]:
    """Return the names of other databases that may be under a newer key than the secret holds, and its version: somebody rolled it back.

    A new key would get the number of theirs.

    Args:
        keys: The keys, with the complete list.
        here: This database.
        earlier: The earlier versions.
    """
    newest: dict[UUID, int] = {}
    for each in earlier:
        if each.version > keys.version:
            for identity in listed_in(each):
                newest[identity] = max(newest.get(identity, 0), each.version)
    known = members(keys)
    return tuple(
        (known[each].name, version)
        for each, version in newest.items()
        if each in known and (here is None or each != here.id)
    )


def index_undone_for(keys: KeySet, here: Here | None, earlier: Sequence[KeySet]) -> tuple[str, ...]:
    """Return the names of other databases whose tokens may be of a newer blind-index key than the secret holds."""
    newer = [each for each in earlier if keys.index_key is not None and each.previous_index_key == keys.index_key]
    known = members(keys)
    found = {identity for each in newer for identity in listed_in(each)}
    return tuple(known[each].name for each in found if each in known and (here is None or each != here.id))
