"""The decision over all small states: it loses no key, ends nowhere, and its remedies lead to the end.

The whole space has versions up to 4, and all combinations. ``python -m tests.test_decision 4`` counts its states and takes the time.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from voiceassist_db import decision
from voiceassist_db.decision import Action, Command, IndexState, Refusal, Remedy, Run, Step, decide_index

MOST_RESTORED = 3
MOST_ANYWHERE = 8
"""Remedies at most where nobody knows how a state can come about."""

MOST_REMEDIES = {0: 1, 1: 3, 2: 4, 3: 4, 4: 4, 5: 4}
"""Remedies that lead to the end at most, by the number of things that are wrong."""

MOST_WHERE_TWO_LACK_KEYS = 6
"""The same where this database and another one lack a key: one version of the secret may not hold both."""

MOST_REMEMBERED = 200_000
"""Decisions of a simulation before the next one begins: those of all states would take gigabytes."""


class Small(NamedTuple):
    """A state that can be a key of a dictionary."""

    secret: tuple[int, ...]
    registry: tuple[tuple[int, bool], ...]
    rows: tuple[int, ...]
    floor: int
    runs: frozenset[Run]
    is_grace_over: bool
    is_stranger: bool = False
    others_wait: bool = False
    is_listed: bool = True
    lost_to_others: int = 0
    """A version that another database needs and the secret lacks; 0 for none."""


def registries(most: int) -> Iterator[tuple[tuple[int, bool], ...]]:
    """Return all registries: the newest version is current, each older one is absent, previous or retired."""
    yield ()
    for newest in range(1, most + 1):
        for older in itertools.product((None, False, True), repeat=newest - 1):
            known = [(version, state) for version, state in enumerate(older, 1) if state is not None]
            yield (*known, (newest, False))


def journals(secret: tuple[int, ...], most: int) -> list[frozenset[Run]]:
    """Return no open run, those of the secret's keys, those of others, one that has no key yet, and two that disagree."""
    newest, *older = secret or (1,)
    old = older[0] if older else newest + 1
    mine, next_ = Run("encryption", old, max(newest, old + 1)), Run("encryption", newest, newest + 1)
    other, retirement = Run("encryption", 6, 7), Run("retirement", old, max(newest, old + 1))
    gone, index = Run("retirement", 6, 7), Run("index", 1, 2)
    several = ({mine, other, index}, {next_, other, gone})
    one = ({each} for each in (mine, next_, other, retirement))
    return [frozenset(each) for each in (set(), *one, *several)]


def space(most: int, *, is_whole: bool) -> Iterator[Small]:
    """Return all states of so many versions. A floor counts by whether it is above what the registry and the rows know.

    Args:
        most: The newest version.
        is_whole: Whether what is wrong with the list of databases is combined, too.
    """
    versions = range(1, most + 1)
    secrets = [(), *((each,) for each in versions), *((b, a) for a, b in itertools.combinations(versions, 2))]
    rows = [each for count in range(most + 1) for each in itertools.combinations(versions, count)]
    for secret, registry, under in itertools.product(secrets, list(registries(most)), rows):
        newest = max((*under, *(version for version, _ in registry)), default=0)
        floors = {0, min(newest + 1, most)}
        for floor, runs in itertools.product(floors, journals(secret, most)):
            small = Small(secret, registry, under, floor, runs, is_grace_over=False)
            yield small
            if secret:
                if is_whole:
                    yield from others(small, most)
                elif len(runs) != 1:
                    yield from (each for each in others(small, most) if differences(small, each) == 1)


def others(small: Small, most: int) -> Iterator[Small]:
    """Return a state with all that a secret may say of other databases, and of this one."""
    newest, *older = small.secret
    lost = [0]
    if not older and newest > 1:
        lost.append(newest - 1)
    if newest < most:  # the secret was rolled back
        lost.append(newest + 1)
    for waits, is_listed, lost_to in itertools.product((False, True) if older else (False,), (True, False), lost):
        changed = small._replace(others_wait=waits, is_listed=is_listed, lost_to_others=lost_to)
        if changed != small:
            yield changed
        if not is_listed and not (small.registry and small.runs):
            yield changed._replace(is_stranger=True)


def differences(one: Small, other: Small) -> int:
    """Count the fields that differ. A stranger is not listed, which counts once."""
    found = sum(mine != theirs for mine, theirs in zip(one, other, strict=True))
    return found - other.is_stranger


class Simulation:
    """Follows a decision and its remedies until a command does what it is for.

    Args:
        rules: The module of the decision.
        most: The newest version that a restored secret may hold.
    """

    def __init__(self, rules: Any, most: int) -> None:
        self.rules = rules
        versions = range(1, most + 1)
        self._histories = [(b, a) for a, b in itertools.combinations(versions, 2)] + [(each,) for each in versions]
        self._known: dict[tuple[Small, Command], tuple[int, int]] = {}
        self._following: set[tuple[Small, Command]] = set()
        self._last: tuple[Small | None, Any] = (None, None)
        self._decided: dict[tuple[Small, Command], Any] = {}

    @property
    def size(self) -> int:
        """How many decisions it remembers."""
        return len(self._decided)

    def decided(self, small: Small, command: Command) -> Any:
        """Return the decision, having asserted what holds for each one."""
        if (small, command) not in self._decided:
            self._decided[small, command] = self._sound(small, command)
        return self._decided[small, command]

    def _sound(self, small: Small, command: Command) -> Any:
        state = self._state(small)
        found = self.rules.decide(state, command)
        if isinstance(found, self.rules.Refusal):
            assert found.happened
            assert (found.remedy == Remedy.RESTORE) == bool(found.needs), (small, command, found)
            assert len(found.needs) <= 2, (small, command, found)
            if found.remedy == Remedy.RESTORE:
                self._names_its_cause(small, found)
            assert found.remedy != Remedy.RESTORE or not found.needs <= set(small.secret), (small, command, found)
            assert command != Command.INIT_KEYS or found.remedy in {Remedy.RESTORE, Remedy.JOIN}
            assert command != Command.JOIN or found.remedy == Remedy.RESTORE
            assert found.remedy != Remedy.JOIN or (small.is_stranger and not small.registry)
            assert found.remedy != Remedy.LIST or not small.is_listed
            self._says_who_retires(small, command, found)
            return found
        lost = set(small.rows) - set(small.secret)
        if found.step in {Step.BEGIN, Step.CREATE, Step.RETIRE, Step.FORGET}:
            assert not lost, ("a row needs a key that the secret lacks", small, command, found)
        if found.step == Step.BEGIN:
            assert (found.from_version, found.to_version, len(small.secret), small.lost_to_others) == (
                small.secret[0],
                small.secret[0] + 1,
                1,
                0,
            )
            assert all(version < found.to_version for version, _ in small.registry)
        if found.step == Step.CREATE:
            assert (small.registry, small.rows, small.floor) == ((), (), 0)
        if found.step in {Step.CONTINUE, Step.RETIRE, Step.FORGET}:
            assert (found.to_version, found.from_version) == small.secret, (small, command, found)
        if found.step in {Step.RETIRE, Step.FORGET}:
            assert not set(small.rows) - {found.to_version}, (small, command, found)
            assert small.is_listed, ("nobody knows who else needs the key", small, command, found)
            assert found.step == Step.FORGET or small.is_grace_over
            assert (found.step == Step.FORGET) == dict(small.registry).get(found.from_version, False)
        assert command == Command.JOIN or not small.is_stranger or small.registry, (
            "it shares keys unasked",
            small,
            command,
            found,
        )
        known = dict(small.registry)
        if found.step == Step.REGISTER:
            assert max((*known, *small.rows, small.floor)) in {0, *small.secret}, (small, command, found)
        assert known or found.step in {Step.CREATE, Step.REGISTER}, ("no keys to work with", small, command, found)
        if found.step == Step.CONTINUE:
            is_begun = Run("encryption", found.from_version, found.to_version) in small.runs
            assert found.from_version in small.rows or found.to_version not in known or is_begun, (
                small,
                command,
                found,
            )
            assert not lost or found.to_version in {*known, *small.rows, small.floor}, (
                "a new key",
                small,
                command,
                found,
            )
        assert command != Command.RESUME or found.step in {Step.CONTINUE, Step.NOTHING}
        if command == Command.RESUME and found.step == Step.NOTHING:
            left = {each for each in small.runs - found.supersedes if each.kind == "encryption"}
            assert left == ({found.begun} if found.begun else set()), (
                "a run stays open, and nobody says so",
                small,
                found,
            )
        else:
            assert found.begun is None
        allowed = {
            Command.ROTATE: {Step.BEGIN, Step.CONTINUE},
            Command.RESUME: {Step.CONTINUE, Step.NOTHING},
            Command.RETIRE: {Step.RETIRE, Step.FORGET, Step.NOTHING},
            Command.INIT_KEYS: {Step.CREATE, Step.REGISTER},
            Command.JOIN: {Step.CREATE, Step.REGISTER},
        }
        assert found.step in allowed[command]
        assert Run("index", 1, 2) not in found.supersedes
        return found

    def _names_its_cause(self, small: Small, refusal: Any) -> None:
        lost, known = set(small.rows) - set(small.secret), max(dict(small.registry), default=0)
        named = {version for version in small.rows if f"7 rows need key version {version}" in refusal.happened}
        assert named == lost, (small, refusal)
        causes = [(known, "was encrypted with version"), (small.floor, "the tables accept key version")]
        if small.lost_to_others:
            causes.append((small.lost_to_others, "clinic_b needs key version"))
            assert ("rolled back" in refusal.happened) == (
                "clinic_b" in refusal.happened and small.lost_to_others > small.secret[0]
            )
        missing = [version for version, cause in causes if f"{cause} {version}" in refusal.happened]
        assert len(missing) == (not lost), (small, refusal)
        assert not {0, *small.secret} & set(missing), ("it is there", small, refusal)
        assert refusal.is_ahead == (small.secret != () and small.secret[0] > known), (small, refusal)

    @staticmethod
    def _says_who_retires(small: Small, command: Command, refusal: Any) -> None:
        if command == Command.ROTATE and small.secret and small.lost_to_others > small.secret[0]:
            assert refusal.remedy not in {Remedy.RETIRE, Remedy.OTHERS}, ("work with a secret of the past", small)
        if refusal.remedy == Remedy.OTHERS:
            assert small.others_wait
            assert "clinic_b" in refusal.happened
            assert dict(small.registry).get(small.secret[-1]), "this database itself may need the key"

    def _state(self, small: Small) -> Any:
        if self._last[0] is not small:  # each is decided for every command
            state = self.rules.State(
                secret=self.rules.Secret(*small.secret) if small.secret else None,
                registry=dict(small.registry),
                rows=dict.fromkeys(small.rows, 7),
                floor=small.floor,
                open_runs=small.runs,
                is_grace_over=small.is_grace_over,
                used_by=("clinic_a",) if small.is_stranger else (),
                needed_by=("clinic_b",) if small.others_wait else (),
                is_listed=small.is_listed,
                lost_to=(("clinic_b", small.lost_to_others),) if small.lost_to_others else (),
            )
            self._last = small, state
        return self._last[1]

    def done(self, small: Small, action: Any) -> Small:
        """Return the state after an action."""
        old, new = action.from_version, action.to_version
        runs = small.runs - action.supersedes
        assert action.supersedes <= small.runs
        registry = dict(small.registry)
        if action.step in {Step.BEGIN, Step.CONTINUE}:
            mine = Run("encryption", old, new)
            assert mine not in action.supersedes, (small, action)
            rows = {new if each == old else each for each in small.rows}
            registry[old] = registry.get(old, False) and old not in small.rows  # a key that rows need is taken back
            registry[new] = False
            runs = runs | {mine} if rows - {new} else runs - {mine}
            assert not {each for each in runs - {mine} if each.kind == "encryption"}, (small, action)
            return small._replace(
                secret=(new, old),
                registry=tuple(sorted(registry.items())),
                rows=tuple(sorted(rows)),
                runs=runs,
                is_grace_over=False,
                is_listed=True,
            )
        if action.step in {Step.RETIRE, Step.FORGET}:
            registry[old] = True
            runs -= {Run("retirement", old, new)}
            assert not {each for each in runs if each.kind != "index"}, (small, action)
            floor = max(small.floor, new)
            kept = (new, old) if small.others_wait else (new,)
            return small._replace(secret=kept, registry=tuple(sorted(registry.items())), floor=floor, runs=runs)
        if action.step in {Step.CREATE, Step.REGISTER}:
            secret = small.secret or (1,)
            registry = dict.fromkeys(secret, False) | registry
            known = tuple(sorted(registry.items()))
            return small._replace(secret=secret, registry=known, runs=runs, is_stranger=False, is_listed=True)
        newest, *older = small.secret
        stays = {Run("retirement", older[0], newest)} if older else {Run("encryption", newest, newest + 1)}
        assert not {each for each in runs if each.kind != "index"} - stays, ("open for ever", small, action)
        return small._replace(runs=runs)

    def remedies(self, small: Small, command: Command) -> tuple[int, int]:
        """Follow all remedies; return how many there were at most, and how many of them restored the secret."""
        asked = (small, command)
        if asked in self._known:
            return self._known[asked]
        assert asked not in self._following, ("remedies lead back to where they began", asked)
        self._following.add(asked)
        found = self.decided(small, command)
        if not isinstance(found, self.rules.Refusal):
            self._known[asked] = self._after(small, command, found)
        else:
            self._known[asked] = max(self._followed(small, command, found))
        self._following.remove(asked)
        return self._known[asked]

    def _after(self, small: Small, command: Command, action: Any) -> tuple[int, int]:
        after = self.done(small, action)
        if action.step == Step.CONTINUE and set(after.rows) - set(after.secret):
            return self.remedies(after, command)  # what it could do is done, and the rest is refused
        return 0, 0

    def _followed(self, small: Small, command: Command, refusal: Any) -> Iterator[tuple[int, int]]:
        if refusal.remedy == Remedy.RESTORE:
            history = [each for each in self._histories if refusal.needs <= set(each)]
            assert history, ("no secret can hold what is needed", small, refusal)
            for each in history:
                waits = bool(small.others_wait or small.lost_to_others) and len(each) > 1
                is_lost = small.lost_to_others and small.lost_to_others not in each and not refusal.is_of_others
                lost_to = small.lost_to_others if is_lost else 0
                is_listed = small.is_listed or each[:1] > small.secret[:1]  # a newer version lists all who used it
                left = small._replace(secret=each, others_wait=waits, lost_to_others=lost_to, is_listed=is_listed)
                more = self.remedies(left, command)
                yield more[0] + 1, more[1] + 1
            return
        if refusal.remedy == Remedy.OTHERS:  # the last of them removes the key
            more = self.remedies(small._replace(secret=small.secret[:1], others_wait=False), command)
            yield more[0] + 1, more[1]
            return
        if refusal.remedy == Remedy.WAIT:
            yield self.remedies(small._replace(is_grace_over=True), command)  # nothing is done in a wait
            return
        other = {
            Remedy.ROTATE: Command.ROTATE,
            Remedy.RETIRE: Command.RETIRE,
            Remedy.INIT_KEYS: Command.INIT_KEYS,
            Remedy.JOIN: Command.JOIN,
            Remedy.LIST: Command.INIT_KEYS,
        }[refusal.remedy]
        acted, before = self.decided(small, other), 0
        while isinstance(
            acted, self.rules.Refusal
        ):  # only the grace period, and a list that was lost, can be in the way
            assert (other, acted.remedy) in {(Command.RETIRE, Remedy.WAIT), (Command.RETIRE, Remedy.LIST)}, (
                small,
                acted,
            )
            if acted.remedy == Remedy.WAIT:
                small = small._replace(is_grace_over=True)
            else:
                small, before = self.done(small, self.decided(small, Command.INIT_KEYS)), before + 1
            acted = self.decided(small, other)
        reached = self.done(small, acted)
        assert reached != small, ("the remedy changes nothing", small, command, refusal)
        more = self.remedies(reached, command)
        yield more[0] + before + 1, more[1]


def check(most: int, rules: Any = decision, *, is_whole: bool = False) -> tuple[int, dict[int, int]]:
    """Assert all properties over all states of so many versions; return their number and the most remedies by number of faults."""
    simulation, count, worst = Simulation(rules, most), 0, dict[int, int]()
    for small in space(most, is_whole=is_whole):
        count += 1
        if simulation.size > MOST_REMEMBERED:
            simulation = Simulation(rules, most)
        found = [simulation.decided(small, command) for command in Command]
        needs = {each.needs for each in found if isinstance(each, rules.Refusal) and each.needs}
        assert len(needs) <= 1, ("remedies contradict", small, found)
        for command in Command:
            remedies, restored = simulation.remedies(small, command)
            assert restored <= MOST_RESTORED, (small, command, restored)
            assert remedies <= MOST_ANYWHERE, (small, command, remedies)
            if is_possible(small):
                wrong = faults(small)
                two_lack_keys = {"a key of this database", "a key of another one"} <= wrong
                worst[len(wrong)] = max(worst.get(len(wrong), 0), remedies)
                most_now = MOST_WHERE_TWO_LACK_KEYS if two_lack_keys else MOST_REMEDIES[len(wrong)]
                assert remedies <= most_now, (small, command, remedies)
                assert restored <= 1 + two_lack_keys, ("the first one did not hold all that rows need", small, command)
    return count, worst


def is_possible(small: Small) -> bool:
    """Say whether the tool and a restore can lead here: two live versions, and nothing that the registry never knew."""
    newest = max((version for version, _ in small.registry), default=0)
    return len({*small.rows, newest}) <= 2 and newest >= max((*small.rows, small.floor), default=0)


def faults(small: Small) -> frozenset[str]:
    """Return what is wrong: what the secret lost, and what was not done yet."""
    known = {version for version, _ in small.registry}
    wrong = {
        "a key of this database": bool({*small.rows, *sorted(known)[-1:]} - set(small.secret)),
        "a key of another one": bool(small.lost_to_others),
        "the list": not small.is_listed,
        "another database has not retired": small.others_wait,
        "no key is registered": not known,
    }
    return frozenset(name for name, is_wrong in wrong.items() if is_wrong)


def test_every_small_state_leads_to_an_end() -> None:
    """No key is made while a row needs one that is missing, and each refusal has a remedy that works."""
    assert check(2)[0] > 1_000


@pytest.mark.wide
def test_every_state_of_three_versions_leads_to_an_end() -> None:
    """The same over more versions."""
    assert check(3)[0] > 20_000


@pytest.mark.wide
@pytest.mark.long
@pytest.mark.parametrize(("most", "least"), [(3, 50_000), (4, 400_000)])
def test_every_combination_leads_to_an_end(most: int, least: int) -> None:
    """The whole space: every journal, and whatever is wrong with the list of databases at the same time."""
    started = time.process_time()
    count, worst = check(most, is_whole=True)
    print(f"{count:,} states in {time.process_time() - started:.0f} s of CPU; most remedies by faults: {worst}")
    assert count > least


@pytest.mark.parametrize("has_key", [True, False])
@pytest.mark.parametrize("has_previous", [True, False])
@pytest.mark.parametrize("is_registered", [True, False])
@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("is_previous_retired", [True, False])
@pytest.mark.parametrize("others", [(), ("clinic_b", "clinic_c")])
def test_the_index_key(  # pytest passes them by name
    has_key: bool,
    has_previous: bool,
    is_registered: bool,
    is_open: bool,
    is_previous_retired: bool,
    others: tuple[str, ...],
) -> None:
    """Resuming creates no key, the run that is continued is that of the two keys in the secret, and others are waited for."""
    runs = frozenset({Run("index", 1, 2), Run("index", 2, 3), Run("encryption", 1, 2)} if is_open else set())
    state = IndexState(has_key, has_previous, is_registered, 2, runs, is_previous_retired, others)
    for resume_only in (True, False):
        found = decide_index(state, resume_only=resume_only)
        if not has_key:
            assert isinstance(found, Refusal)
            assert (found.remedy, "init-keys" in found.happened) == (Remedy.INIT_KEYS, True)
            continue
        is_done = has_previous and is_previous_retired and bool(others)
        if is_done and not resume_only:
            assert isinstance(found, Refusal)
            assert (found.remedy, "clinic_b and clinic_c" in found.happened) == (Remedy.OTHERS, True)
            continue
        assert isinstance(found, Action)
        if is_done:
            assert found.step == Step.NOTHING
            continue
        assert found.step == (Step.CONTINUE if has_previous else Step.NOTHING if resume_only else Step.BEGIN)
        assert found.to_version == (2 if has_previous and is_registered else 3)
        stays = Run("index", found.from_version, found.to_version)
        assert found.begun == (stays if is_open and found.step == Step.NOTHING else None)
        assert found.supersedes == {each for each in runs if each.kind == "index"} - {stays}


@pytest.mark.parametrize("has_previous", [True, False])
@pytest.mark.parametrize("is_previous_retired", [True, False])
def test_the_index_key_of_unknown_databases(has_previous: bool, is_previous_retired: bool) -> None:
    """A rotation of the index key ends with the loss of the older one, so it does not begin where nobody knows who needs that."""
    state = IndexState(True, has_previous, True, 2, frozenset(), is_previous_retired, (), is_listed=False)
    found = decide_index(state, resume_only=False)
    assert isinstance(found, Refusal)
    assert (found.remedy, "init-keys` here and in every other" in found.happened) == (Remedy.LIST, True)
    resumed = decide_index(state, resume_only=True)
    assert isinstance(resumed, Refusal) if has_previous else resumed == Action(Step.NOTHING, 2, 3)


def test_an_index_key_that_others_have_already() -> None:
    """After a rollback of the secret, a new index key would replace theirs. What has begun is finished, and resuming begins nothing."""
    state = IndexState(True, False, True, 2, frozenset(), lost_to=("clinic_b",))
    found = decide_index(state, resume_only=False)
    assert isinstance(found, Refusal)
    assert (found.remedy, "clinic_b may need" in found.happened) == (Remedy.RESTORE, True)
    assert decide_index(state, resume_only=True) == Action(Step.NOTHING, 2, 3)
    begun = decide_index(replace(state, has_previous=True), resume_only=False)
    assert isinstance(begun, Action)
    assert begun.step == Step.CONTINUE


MUTANTS = {
    "a secret of the past is retired first": ("if any(version > new for _, version in state.lost_to):", "if False:"),
    "a new key is made without the key of others": ("    if state.lost_to:\n", "    if False:\n"),
    "a key is taken from databases that nobody knows": (
        "    if not state.is_listed:\n        return",
        "    if False:\n        return",
    ),
    "a new key is made without the keys of rows": (
        "return _restore(state) if _lacks_keys(state, secret) else None",
        "return None",
    ),
    "resuming begins": ("    if resume_only:\n", "    if False:\n"),
    "a complete rotation is not retired first": (
        "    if old is not None:\n        return Refusal(\n            Remedy.RETIRE",
        "    if False:\n        return Refusal(\n            Remedy.RETIRE",
    ),
    "the registry is no anchor": ("anchors | ({max(state.registry)} if state.registry else set())", "anchors"),
    "rows are no anchor": ("max([*state.registry, *state.rows, state.floor])", "max([*state.registry, state.floor])"),
    "the floor is no anchor": (
        "max([*state.registry, *state.rows, state.floor])",
        "max([*state.registry, *state.rows, 0])",
    ),
    "rows under the old key are no rotation": ("    if old in state.rows or new not", "    if new not"),
    "a key that is not registered is no rotation": (
        "    if old in state.rows or new not in state.registry:",
        "    if old in state.rows:",
    ),
    "a run without a key is not told": ("begun=begun if is_begun else None", "begun=None"),
    "an open run is no rotation": ("return is_begun and not", "return False and not"),
    "an open run of any pair is a rotation": (" and _is_pair(each, secret) for each", " for each"),
    "a retired version is rotated": (" and not state.registry.get(old or 0, False)", ""),
    "a third version waits for ever": ("return is_begun and not lacks_keys and", "return is_begun and"),
    "a key that nothing uses yet is taken": ("return not lacks_keys or new in _anchors(state)", "return True"),
    "a third version always waits": ("return not lacks_keys or new in _anchors(state)", "return not lacks_keys"),
    "a retirement goes before its rotation": (
        "        return Refusal(Remedy.ROTATE, _why_unfinished(state, old, new))",
        "        pass",
    ),
    "a retired version waits": ("    if state.registry.get(old, False):\n", "    if False:\n"),
    "the grace period does not count": ("    if not state.is_grace_over:", "    if False:"),
    "a key is made for a database that has keys": (
        "        if state.registry or state.rows or state.floor:",
        "        if state.registry:",
    ),
    "init-keys accepts any secret": (
        "    if refusal := _restore_if_unusable(state):\n        return refusal\n    return Action(Step.REGISTER",
        "    return Action(Step.REGISTER",
    ),
    "keys are shared unasked": ("    if not joins and _is_stranger(state):", "    if False:"),
    "keys that are shared are refused again": (
        "return bool(state.used_by) and not state.registry",
        "return bool(state.used_by)",
    ),
    "sharing is not asked for": ("    if state.secret is not None and _is_stranger(state):", "    if False:"),
    "others are not waited for": (
        "if old is not None and state.registry.get(old, False) and state.needed_by:",
        "if False:",
    ),
    "others are waited for first": (
        "if old is not None and state.registry.get(old, False) and state.needed_by:",
        "if old is not None and state.needed_by:",
    ),
    "init-keys is not asked for": (
        "    if state.secret is None or not state.registry:",
        "    if state.secret is None:",
    ),
    "no run is superseded": ("return frozenset(filter(is_over, state.open_runs))", "return frozenset()"),
    "every run is superseded": ("return frozenset(filter(is_over, state.open_runs))", "return state.open_runs"),
    "a retirement is never over": ('return run.kind == "retirement" and not _is_pair(run, secret)', "return False"),
    "only one key is asked for": ("        needed.add(max(others))", "        pass"),
    "a key that the secret holds is not asked for": (
        "others := [version for version in lost if version not in needed] or _others(state, needed)",
        "others := [version for version in lost if version not in needed]",
    ),
    "a remedy names no key": ("frozenset(needed), is_ahead)", "frozenset(), is_ahead)"),
    "a key that is there is called missing": ("    elif known and known not in held:", "    elif known:"),
    "a floor that is kept is called missing": ("    elif known and known not in held:", "    elif known and False:"),
    "rows are no cause": ("    if lost:", "    if False:"),
    "every secret is ahead": ("state.secret.current > known", "state.secret.current > 0"),
    "a refusal says nothing": ('f"{happened}. Nothing was changed."', '""'),
}


@pytest.mark.wide
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_each_rule_is_caught(name: str) -> None:
    """The properties hold the rules: each one that is taken away is noticed."""
    with pytest.raises((AssertionError, ValueError)):
        for most in (2, 3):
            check(most, mutant(*MUTANTS[name]))


def mutant(rule: str, instead: str) -> ModuleType:
    """Return the module of the decision with one of its rules exchanged."""
    source = Path(decision.__file__).read_text(encoding="utf-8")
    assert source.count(rule) == 1, rule
    made = ModuleType("mutant")
    sys.modules["mutant"] = made  # dataclasses look it up
    exec(compile(source.replace(rule, instead), "mutant", "exec"), made.__dict__)  # noqa: S102  # our own source
    for name in ("Command", "Step", "Remedy", "Run", "Secret", "State", "Action", "Refusal"):
        setattr(made, name, getattr(decision, name))
    return made


if __name__ == "__main__":
    started = time.process_time()
    print(check(int(sys.argv[1]), is_whole=True), time.process_time() - started)
