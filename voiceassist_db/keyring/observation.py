"""Reads what a decision about keys depends on, and tells an operator how a refusal is remedied.

Owns the counts by key version, the look at the unfinished runs, and the search in the history of the secret. Changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, func, or_, select

from voiceassist_db.commands import RETIRE
from voiceassist_db.constraints import floor
from voiceassist_db.decision import IndexState, Refusal, Remedy, Run, Secret, State, waiting_for
from voiceassist_db.errors import KeyNotRegisteredError, KeysNotFoundError, RotationError, VoiceAssistDBError
from voiceassist_db.execution import execute, see_all_rows
from voiceassist_db.keyring.history import (
    completed_from,
    earlier_versions,
    index_undone_for,
    listed_in,
    past,
    undone_for,
)
from voiceassist_db.keyring.members import (
    Here,
    index_needed_by,
    is_listed,
    is_listed_as_done_with_index,
    lost_to,
    members,
    needed_by,
    registered_as,
    used_by,
)
from voiceassist_db.keyring.registry import proves, proves_index_keys, registered_index_keys, registered_keys
from voiceassist_db.keys import KeyHistory, KeyProvider, KeySet
from voiceassist_db.models import EncryptedTable, KeyRotationRow, table_of

_RUNS: Final = table_of(KeyRotationRow)
OPEN: Final = ("running", "interrupted")
"""States of a run that has not finished."""

IS_OPEN: Final = or_(*(_RUNS.c.state == state for state in OPEN))


def fetched(provider: KeyProvider) -> KeySet | None:
    """Return the keys of the store; None where there are none."""
    try:
        return provider.fetch()
    except KeysNotFoundError:
        return None


def observe(
    connection: Connection, provider: KeyProvider, keys: KeySet | None, tables: Iterable[EncryptedTable]
) -> State:
    """Read the state of a database and of its key store. The grace period is not looked at.

    Args:
        connection: A connection of the database.
        provider: The key store, which may keep earlier versions of its keys.
        keys: What it holds; None where there are no keys.
        tables: The encrypted tables.

    Raises:
        WrongKeyError: A key is not the one that is registered for its version.
        RotationError: Rows have values and no key version.
    """
    known = registered_keys(connection)
    if keys is not None:
        proves(keys, known)
    counted: Counter[int] = Counter()
    newest_floor = 0
    for table in tables:
        newest_floor = max(newest_floor, floor(connection, table))
        counted.update(_rows(connection, table))
    state = State(
        secret=None if keys is None else Secret(keys.version, keys.previous_version),
        registry={version: key.state == "retired" for version, key in known.items()},
        rows=dict(counted),
        floor=newest_floor,
        open_runs=open_runs(connection),
    )
    if keys is None:
        return state
    here, earlier = Here.of(connection), past(provider, keys)
    listed = completed_from(keys, earlier)
    return replace(
        state,
        used_by=used_by(listed, here),
        needed_by=needed_by(listed, here),
        is_listed=is_listed(keys, here),  # which a list that was changed by hand must say itself
        lost_to=lost_to(listed, here) + undone_for(listed, here, earlier),
    )


def index_state(connection: Connection, provider: KeyProvider, keys: KeySet) -> IndexState:
    """Return what a rotation of the blind-index key finds."""
    known = registered_index_keys(connection)
    current = keys.index_key
    previous = keys.previous_index_key
    here, earlier = Here.of(connection), past(provider, keys)
    listed = completed_from(keys, earlier)
    return IndexState(
        has_key=current is not None,
        has_previous=previous is not None,
        is_registered=current is not None and registered_as(current) in known,
        registered=len(known),
        open_runs=open_runs(connection),
        # One that died before it told the key store goes on, and tells it.
        is_previous_retired=previous is not None
        and known.get(registered_as(previous)) == "retired"
        and is_listed_as_done_with_index(listed, here),
        needed_by=index_needed_by(listed, here),
        is_listed=is_listed(keys, here),
        lost_to=index_undone_for(listed, here, earlier),
    )


def open_runs(connection: Connection) -> frozenset[Run]:
    """Return the runs that have not finished."""
    runs = select(_RUNS.c.kind, _RUNS.c.from_version, _RUNS.c.to_version).where(IS_OPEN)
    return frozenset(Run(*tuple(row)) for row in execute(connection, runs, table=_RUNS.name))


def _rows(connection: Connection, table: EncryptedTable) -> dict[int, int]:
    see_all_rows(connection)
    values = func.count().filter(table.has_no_version())
    counted = select(table.version, func.count(), values).group_by(table.version)
    counts: list[Any] = [*execute(connection, counted, table=table.name)]
    found = {version: (rows, values) for version, rows, values in counts}
    _, unversioned = found.pop(None, (0, 0))  # a row without a version and without values needs no key
    if unversioned:
        raise without_version(table, unversioned)
    return {version: rows for version, (rows, _) in found.items()}


def without_version(table: EncryptedTable, rows: int) -> RotationError:
    """Return the error of rows that have values and no key version, so that nobody knows which key they need."""
    return RotationError(
        f"{rows:,} rows of {table.name} have encrypted values and no key version, so that nobody knows which key they need: give each the "
        "version that it was written under, or remove its values. `voiceassist-db verify` names them. No key was changed"
    )


def explained(refusal: Refusal, provider: KeyProvider, keys: KeySet | None, connection: Connection) -> str:
    """Return the message of a refusal: what happened, and what to do now."""
    if refusal.remedy is not Remedy.RESTORE:
        return refusal.happened
    others = _others(keys, connection) if refusal.is_ahead and keys is not None else []
    told = f"{refusal.happened} {_restoring(refusal.needs, provider, keys, connection, others)} Then run this again."
    if refusal.is_ahead and not others:
        told += (
            " If another database uses this secret, do not change it. Write the older version to another path, and set "
            "VOICEASSIST_DB_VAULT_PATH for this database."
        )
    return told


def _others(keys: KeySet, connection: Connection) -> list[str]:
    here = Here.of(connection)
    return [member.name for each, member in members(keys).items() if here is None or each != here.id]


def _keeping(others: list[str]) -> str:
    """Return a warning where a version of the secret that goes back would take a key from other databases."""
    return (
        f"But this secret is also that of {', '.join(others)}: do not change it. Write that version to another path, and set "
        "VOICEASSIST_DB_VAULT_PATH for this database."
    )


def refused(refusal: Refusal, provider: KeyProvider, keys: KeySet | None, connection: Connection) -> VoiceAssistDBError:
    """Return a refusal as the error to raise."""
    message = explained(refusal, provider, keys, connection)
    if keys is None:
        return KeysNotFoundError(message)
    if refusal.remedy is Remedy.INIT_KEYS:
        return KeyNotRegisteredError(message, version=keys.version)
    return RotationError(message)


def _restoring(
    needs: frozenset[int], provider: KeyProvider, keys: KeySet | None, connection: Connection, others: list[str]
) -> str:
    needed = " and ".join(map(str, sorted(needs)))
    unknown = (
        f"Restore the version of the secret that holds key version {needed} (`vault kv rollback -version=…`), or the secret "
        "itself from a backup; or correct VAULT_ADDR, VAULT_NAMESPACE and VOICEASSIST_DB_VAULT_PATH."
    )
    if others:
        unknown = f"{unknown} {_keeping(others)}"
    if keys is None or not isinstance(provider, KeyHistory):
        return unknown
    registry = registered_keys(connection)
    holding: KeySet | None = None
    partly: list[tuple[KeySet, int]] = []
    for earlier in earlier_versions(provider, keys):
        if not proves(earlier, registry, raises=False):
            continue
        if needs <= earlier.versions().keys():
            if proves_index_keys(connection, earlier):
                return _rolling_back(provider, earlier, keys, needed, others)
            holding = holding or earlier
        partly += [(earlier, version) for version in needs - keys.versions().keys() if version in earlier.versions()]
    if holding is not None:  # the blind-index key is another one there, which is said next
        return _rolling_back(provider, holding, keys, needed, others)
    missing = needs - keys.versions().keys()
    if len(missing) == 1 and partly and partly[0][1] < keys.version and keys.version in needs:
        return _adding(provider, *partly[0], keys, needed_by(keys, Here.of(connection)))
    return f"No earlier version of the secret that can be read holds key version {needed}. {unknown}"


def _rolling_back(provider: KeyHistory, earlier: KeySet, keys: KeySet, needed: str, others: list[str]) -> str:
    told = f"Version {earlier.revision} of the secret holds key version {needed}"
    if others and not keys.versions().keys() <= earlier.versions().keys():
        return f"{told}. {_keeping(others)}"
    return f"{told}: `{provider.restoring(earlier.revision)}`.{_then(_unlisted(earlier, keys))}"


def _then(unlisted: list[str]) -> str:
    """Return what follows a rollback to a version that does not list all databases: a key could leave the secret while they need it."""
    if not unlisted:
        return ""
    return (
        f" That version does not list {', '.join(unlisted)}: run `voiceassist-db init-keys` there before anything else."
    )


def _unlisted(earlier: KeySet, keys: KeySet) -> list[str]:
    before = listed_in(earlier)
    return [member.name for each, member in members(keys).items() if each not in before]


def _adding(provider: KeyHistory, earlier: KeySet, version: int, keys: KeySet, others: tuple[str, ...]) -> str:
    field = "key" if version == earlier.version else "previous_key"
    told = f"Version {earlier.revision} of the secret holds key version {version}. No version holds both keys that are needed"
    if others:  # it would take the place of a key that they need
        return f"{told}. Key version {keys.previous_version} {waiting_for(others, f'`{RETIRE}`')}"
    return f"{told}, so add it to the newest: `{provider.adding(earlier.revision, field, version)}`."


def index_restoring(provider: KeyProvider, keys: KeySet) -> str:
    """Return what to do where the secret was rolled back to an older blind-index key."""
    for earlier in past(provider, keys):
        is_newer = keys.index_key is not None and earlier.previous_index_key == keys.index_key
        if is_newer and keys.versions().items() <= earlier.versions().items() and isinstance(provider, KeyHistory):
            return f"Version {earlier.revision} of the secret holds it: `{provider.restoring(earlier.revision)}`. Then run this again."
    return "No version of the secret holds it beside the keys of today. Write a version that holds it to another path for those databases."
