"""What a command may do with the keys of a database: one pure function of what it found, which is tested over all small states.

Owns the order of the rules. Does no I/O: ``rotation.observation`` reads the state, and the commands carry out the answer.

A secret holds at most two key versions. So where rows need more, the rules finish one pair before they ask for the next key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from voiceassist_db.commands import RETIRE, ROTATE_INDEX


class Command(StrEnum):
    """What is asked for."""

    ROTATE = "rotate"
    RESUME = "resume"
    RETIRE = "retire"
    INIT_KEYS = "init-keys"
    JOIN = "init-keys --join"


class Step(StrEnum):
    """What a command does next."""

    BEGIN = "begin"
    """Create a new key, and rotate to it. The only step of a rotation that creates one."""

    CONTINUE = "continue"
    """Rotate between the two keys of the secret."""

    RETIRE = "retire"
    """Close the previous version in the tables and in the registry, and remove its key from the secret."""

    FORGET = "forget"
    """Only remove the previous key from the secret, unless other databases may need it: the rest of its retirement is done."""

    CREATE = "create"
    """Create the first key, and register it."""

    REGISTER = "register"
    """Register the keys of the secret, those that the database does not know."""

    NOTHING = "nothing"
    """There is nothing to do."""


class Remedy(StrEnum):
    """What an operator does about a refusal."""

    RESTORE = "restore"
    """Bring a version of the secret back that holds the keys that are needed."""

    ROTATE = "rotate"
    RETIRE = "retire"
    WAIT = "wait"
    INIT_KEYS = "init-keys"
    JOIN = "init-keys --join"
    OTHERS = "retire in the other databases"
    LIST = "init-keys in every database"


@dataclass(frozen=True, slots=True)
class Secret:
    """The encryption keys that the key store holds."""

    current: int
    previous: int | None = None

    @property
    def versions(self) -> frozenset[int]:
        """The key versions of both slots."""
        return frozenset({self.current} if self.previous is None else {self.current, self.previous})


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the journal that has not finished."""

    kind: str
    from_version: int
    to_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a command finds.

    Attributes:
        secret: The keys; None where there is no secret.
        registry: Whether a registered version is retired, by version.
        rows: Number of rows by key version; no version without rows.
        floor: The oldest key version that the tables accept; 0 where they accept all.
        open_runs: The unfinished runs.
        is_grace_over: Whether the previous version may be retired by now.
        used_by: Names of other databases that the secret lists, where it does not list this one.
        needed_by: Names of other databases that the secret lists and that may need its previous version.
        is_listed: Whether the secret lists this database, or the key store keeps no list.
        lost_to: Names of other databases that the secret lists, and the version that each may need and the secret no longer holds.
    """

    secret: Secret | None
    registry: Mapping[int, bool]
    rows: Mapping[int, int]
    floor: int = 0
    open_runs: frozenset[Run] = frozenset()
    is_grace_over: bool = True
    used_by: tuple[str, ...] = ()
    needed_by: tuple[str, ...] = ()
    is_listed: bool = True
    lost_to: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """What to do.

    Attributes:
        step: What it is.
        from_version: The older key version; 0 where the step has none.
        to_version: The newer one; 0 where the step has none.
        supersedes: The unfinished runs that can never be continued: their keys are no longer those of the secret.
        begun: The run that was begun and has no key yet, where nothing is done because no key may be made.
    """

    step: Step
    from_version: int = 0
    to_version: int = 0
    supersedes: frozenset[Run] = frozenset()
    begun: Run | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is done.

    Attributes:
        remedy: What the operator does about it.
        happened: What is wrong, in words.
        needs: The key versions that the secret must hold, with :attr:`Remedy.RESTORE`.
        is_ahead: Whether the secret holds a version that the database does not know: another database may use it.
        is_of_others: Whether only other databases need those versions.
    """

    remedy: Remedy
    happened: str
    needs: frozenset[int] = field(default_factory=frozenset)
    is_ahead: bool = False
    is_of_others: bool = False


NO_ROTATION: Final = "no rotation is unfinished: nothing to do"
NO_INDEX_ROTATION: Final = "no rotation of the blind-index key is unfinished: nothing to do"
NO_PREVIOUS: Final = "the key store holds one key version only: there is nothing to retire"


def decide(state: State, command: Command) -> Action | Refusal:
    """Return what a command does next, or why it refuses and what to do about that."""
    if command in {Command.INIT_KEYS, Command.JOIN}:
        return _initialise(state, joins=command is Command.JOIN)
    if refusal := _unusable(state):
        return refusal
    assert state.secret is not None  # which would be a refusal
    if command is Command.RETIRE:
        return _retire(state, state.secret)
    return _rotate(state, state.secret, resume_only=command is Command.RESUME)


def _rotate(state: State, secret: Secret, *, resume_only: bool) -> Action | Refusal:
    old, new = secret.previous, secret.current
    if old is not None and _is_unfinished(state, secret):
        return Action(Step.CONTINUE, old, new, _superseded(state, secret))
    if refusal := _missing(state, secret):
        return refusal
    if resume_only:
        begun = Run("encryption", new, new + 1)
        is_begun = old is None and begun in state.open_runs
        return Action(Step.NOTHING, supersedes=_superseded(state, secret), begun=begun if is_begun else None)
    if any(version > new for _, version in state.lost_to):  # what follows would use a secret of the past
        return _lost(state.lost_to, secret)
    if old is not None and state.registry.get(old, False) and state.needed_by:
        return _needed_by_others(f"key version {old}", state.needed_by, f"`{RETIRE}`")
    if old is not None:
        return Refusal(
            Remedy.RETIRE,
            f"key version {old} is still in the key store since the rotation to {new}, which is complete. At most two "
            f"versions are live: retire it first (`{RETIRE}`).",
        )
    if state.lost_to:
        return _lost(state.lost_to, secret)
    return Action(Step.BEGIN, new, new + 1, _superseded(state, secret))


def _retire(state: State, secret: Secret) -> Action | Refusal:
    old, new = secret.previous, secret.current
    if old is not None and _is_unfinished(state, secret):
        return Refusal(Remedy.ROTATE, _why_unfinished(state, old, new))
    if refusal := _missing(state, secret):
        return refusal
    if old is None:
        return Action(Step.NOTHING, supersedes=_superseded(state, secret))
    if not state.is_listed:
        return _unlisted(f"key version {old}")
    if state.registry.get(old, False):
        return Action(Step.FORGET, old, new, _superseded(state, secret))
    if not state.is_grace_over:
        return Refusal(Remedy.WAIT, f"key version {old} stays for the backups of the time before its rotation")
    return Action(Step.RETIRE, old, new, _superseded(state, secret))


def _initialise(state: State, *, joins: bool) -> Action | Refusal:
    if state.secret is None:
        if state.registry or state.rows or state.floor:
            return _restore(state)
        return Action(Step.CREATE, to_version=1)
    if refusal := _restore_if_unusable(state):
        return refusal
    if not joins and _is_stranger(state):
        return _joining(state)
    return Action(Step.REGISTER, to_version=state.secret.current)


def _is_stranger(state: State) -> bool:
    """Say whether this database would begin to share the secret of others. One that has registered its keys does share it."""
    return bool(state.used_by) and not state.registry


def _joining(state: State) -> Refusal:
    return Refusal(
        Remedy.JOIN,
        f"the keys are those of {_listed(state.used_by)}, and no key is registered in this database. Give it a secret of its own "
        "(VOICEASSIST_DB_VAULT_PATH), as staging and production must have. If the databases shall share their keys, and rotate them "
        "together, run `voiceassist-db init-keys --join`. Nothing was changed.",
    )


def _needed_by_others(what: str, names: tuple[str, ...], command: str) -> Refusal:
    return Refusal(Remedy.OTHERS, f"{what} {waiting_for(names, command)}")


def _unlisted(what: str) -> Refusal:
    """Refuse what would take a key from databases that nobody knows: the secret lost its list, or is of the time before."""
    return Refusal(
        Remedy.LIST,
        f"the key store does not list this database, so its list does not say who else needs {what}. Run `voiceassist-db init-keys` here and "
        "in every other database that uses these keys, then run this again. Nothing was changed.",
    )


def waiting_for(names: tuple[str, ...], command: str) -> str:
    """Return the words that say for whom a key stays in the key store, and what to do there."""
    there = "there" if len(names) == 1 else "in each"
    return (
        f"stays in the key store for {_listed(names)}: run {command} {there}. If a database no longer exists, remove it by "
        "`voiceassist-db init-keys --forget DATABASE`."
    )


def _listed(names: tuple[str, ...]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _unusable(state: State) -> Refusal | None:
    """Refuse a secret that cannot be used for this database at all."""
    if refusal := _restore_if_unusable(state):
        return refusal
    if state.secret is not None and _is_stranger(state):
        return _joining(state)
    if state.secret is None or not state.registry:
        what = "there is no key" if state.secret is None else f"key version {state.secret.current} is not registered"
        return Refusal(Remedy.INIT_KEYS, f"{what} in this database: run `voiceassist-db init-keys` once")
    return None


def _restore_if_unusable(state: State) -> Refusal | None:
    needed = _anchors(state)
    held = state.secret.versions if state.secret is not None else frozenset()
    if needed <= held:
        return None
    return _restore(state)


def _anchors(state: State) -> frozenset[int]:
    """Return the versions that the secret must hold: the newest registered one, which proves it, and the newest in use."""
    newest = max([*state.registry, *state.rows, state.floor])
    anchors = {newest} if newest else set()
    return frozenset(anchors | ({max(state.registry)} if state.registry else set()))


def _is_unfinished(state: State, secret: Secret) -> bool:
    """Say whether the rotation between the two keys of the secret has something left to do."""
    old, new = secret.previous, secret.current
    lacks_keys = bool(_lacks_keys(state, secret))
    if old in state.rows or new not in state.registry:
        # Rows that need a third version wait, unless nothing uses the newest key yet: then the older pair is restored first.
        return not lacks_keys or new in _anchors(state)
    is_begun = any(each.kind == "encryption" and _is_pair(each, secret) for each in state.open_runs)
    return is_begun and not lacks_keys and not state.registry.get(old or 0, False)


def _is_pair(run: Run, secret: Secret) -> bool:
    return (run.from_version, run.to_version) == (secret.previous, secret.current)


def _superseded(state: State, secret: Secret) -> frozenset[Run]:
    """Return the runs that cannot be continued. A rotation that has no key yet can: it is of the current key to the next one."""
    begins = (secret.current, secret.current + 1)
    old = secret.previous
    is_retired = old is None or (state.registry.get(old, False) and old not in state.rows)

    def is_over(run: Run) -> bool:
        if run.kind == "encryption":
            pair_is_over = is_retired or not _is_pair(run, secret)
            return pair_is_over and (secret.previous is not None or (run.from_version, run.to_version) != begins)
        return run.kind == "retirement" and not _is_pair(run, secret)

    return frozenset(filter(is_over, state.open_runs))


def _lacks_keys(state: State, secret: Secret) -> frozenset[int]:
    return frozenset(state.rows) - secret.versions


def _missing(state: State, secret: Secret) -> Refusal | None:
    """Refuse where rows need a version that the secret lacks: no new key may take one of its two slots."""
    return _restore(state) if _lacks_keys(state, secret) else None


def _restore(state: State) -> Refusal:
    needed = set(_anchors(state))
    held = state.secret.versions if state.secret is not None else frozenset()
    lost = sorted(version for version in state.rows if version not in held)
    if len(needed) == 1 and (
        others := [version for version in lost if version not in needed] or _others(state, needed)
    ):
        needed.add(max(others))
    known = max(state.registry, default=0)
    if lost:
        rows = "; ".join(f"{state.rows[each]:,} rows need key version {each}" for each in lost)
        happened = f"{rows}: the key store does not hold {'it' if len(lost) == 1 else 'them'}"
    elif known and known not in held:
        happened = f"this database was encrypted with version {known}, and the key store does not hold that key"
    else:
        happened = f"the tables accept key version {state.floor} and later only, and the key store does not hold it"
    is_ahead = state.secret is not None and state.secret.current > known
    return Refusal(Remedy.RESTORE, f"{happened}. Nothing was changed.", frozenset(needed), is_ahead)


def _lost(lost_to: tuple[tuple[str, int], ...], secret: Secret) -> Refusal:
    """Refuse a new key, which would take the slot of one that another database needs: no secret could serve both then."""
    needs = "; ".join(f"{name} needs key version {version}" for name, version in lost_to)
    rolled_back = (
        " The secret was rolled back, and a new key would take the number of theirs. If all databases were rolled back with it, give them a "
        "copy of the secret at another path (VOICEASSIST_DB_VAULT_PATH)."
    )
    return Refusal(
        Remedy.RESTORE,
        f"{needs}: the key store does not hold that. Nothing was changed. If a database no longer exists, remove it by `voiceassist-db "
        f"init-keys --forget DATABASE`.{rolled_back if any(version > secret.current for _, version in lost_to) else ''}",
        frozenset({secret.current, max(version for _, version in lost_to)}),
        is_of_others=True,
    )


def _others(state: State, needed: set[int]) -> list[int]:
    return [version for version in state.rows if version not in needed]


def _why_unfinished(state: State, old: int, new: int) -> str:
    if rows := state.rows.get(old, 0):
        return (
            f"{rows:,} rows still need key version {old}: run the rotation again, which finishes them. Rows that it cannot read "
            "must be repaired, restored or removed first: key_rotation_failures names them."
        )
    if new not in state.registry:
        return f"the rotation to key version {new} has begun, and this database does not know that key yet: finish it first, by running it again"
    return f"the rotation to key version {new} is unfinished: finish it first, by running it again"


@dataclass(frozen=True, slots=True)
class IndexState:
    """What a rotation of the blind-index key finds.

    Attributes:
        has_key: Whether the secret holds an index key.
        has_previous: Whether it holds the one before it, too.
        is_registered: Whether the database knows the current one.
        registered: How many index keys the database has had.
        open_runs: The unfinished runs of every kind.
        is_previous_retired: Whether no token of this database is of the key before it any more, and the key store knows so.
        needed_by: Names of other databases that the secret lists and that may need the key before it.
        is_listed: Whether the secret lists this database, or the key store keeps no list.
        lost_to: Names of other databases that the secret lists and that may need a newer key, which it no longer holds.
    """

    has_key: bool
    has_previous: bool
    is_registered: bool
    registered: int
    open_runs: frozenset[Run] = frozenset()
    is_previous_retired: bool = False
    needed_by: tuple[str, ...] = ()
    is_listed: bool = True
    lost_to: tuple[str, ...] = ()


def decide_index(state: IndexState, *, resume_only: bool) -> Action | Refusal:
    """Return what a rotation of the blind-index key does next. Its versions are a count."""
    if not state.has_key:
        return Refusal(
            Remedy.INIT_KEYS, "the key store holds no index_key: run `voiceassist-db init-keys`, which adds it"
        )
    if not state.is_listed and (state.has_previous or not resume_only):
        return _unlisted("the blind-index key that this ends")
    if state.has_previous and state.is_previous_retired and state.needed_by:
        if resume_only:
            return _of_index(Step.NOTHING, state.registered, state)
        return _needed_by_others("the blind-index key before this one", state.needed_by, f"`{ROTATE_INDEX}`")
    if state.has_previous:
        newest = state.registered if state.is_registered else state.registered + 1
        return _of_index(Step.CONTINUE, newest, state)
    if state.lost_to and not resume_only:
        return Refusal(
            Remedy.RESTORE,
            f"{_listed(state.lost_to)} may need a newer blind-index key, which the key store no longer holds, because the secret was rolled "
            "back. Nothing was changed. If a database no longer exists, remove it by `voiceassist-db init-keys --forget DATABASE`.",
            is_of_others=True,
        )
    return _of_index(Step.NOTHING if resume_only else Step.BEGIN, state.registered + 1, state)


def _of_index(step: Step, newest: int, state: IndexState) -> Action:
    mine = Run("index", newest - 1, newest)
    others = frozenset(each for each in state.open_runs if each.kind == "index" and each != mine)
    has_no_key = step is Step.NOTHING and not state.has_previous and mine in state.open_runs
    return Action(step, newest - 1, newest, others, mine if has_no_key else None)


def nothing_to_resume(action: Action, otherwise: str) -> str:
    """Return the message of a command that may make no key, and has nothing else to do; ``otherwise`` where no run waits for a key."""
    if action.begun is None:
        return otherwise
    of = "blind-index key" if action.begun.kind == "index" else "key"
    return (
        f"the rotation of the {of} from version {action.begun.from_version} to {action.begun.to_version} began, and its new key was never "
        "made: no row was changed. `--resume` makes no key: run this again without it"
    )
