"""The decision over all small states: it loses no key, ends nowhere, and its remedies lead to the end.

The whole space has versions up to 4. ``python -m tests.test_decision`` counts its states and takes the time.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from voiceassist_db import decision
from voiceassist_db.decision import Command, Remedy, Run, Step

MOST_RESTORED = 3
MOST_REMEDIES = 3


class Small(NamedTuple):
    """A state that can be a key of a dictionary."""

    secret: tuple[int, ...]
    registry: tuple[tuple[int, bool], ...]
    rows: tuple[int, ...]
    floor: int
    runs: frozenset[Run]
    is_grace_over: bool


def registries(most: int) -> Iterator[tuple[tuple[int, bool], ...]]:
    """Return all registries: the newest version is current, each older one is absent, previous or retired."""
    yield ()
    for newest in range(1, most + 1):
        for older in itertools.product((None, False, True), repeat=newest - 1):
            known = [(version, state) for version, state in enumerate(older, 1) if state is not None]
            yield (*known, (newest, False))


def journals(most: int) -> list[frozenset[Run]]:
    """Return no open run, each one, and two that disagree; of the rotation that has no key yet, too."""
    kinds = [Run("encryption", each, each + 1) for each in range(1, most + 1)]
    kinds += [Run("retirement", each, each + 1) for each in range(1, most)] + [Run("index", 1, 2)]
    return [frozenset(each) for count in (0, 1, 2) for each in itertools.combinations(kinds, count)]


def space(most: int) -> Iterator[Small]:
    """Return all states of so many versions."""
    versions = range(1, most + 1)
    secrets = [(), *((each,) for each in versions), *((b, a) for a, b in itertools.combinations(versions, 2))]
    rows = [each for count in range(most + 1) for each in itertools.combinations(versions, count)]
    axes = (secrets, list(registries(most)), rows, range(most + 1), journals(most), (True, False))
    return itertools.starmap(Small, itertools.product(*axes))


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

    def decided(self, small: Small, command: Command) -> Any:
        """Return the decision, having asserted what holds for each one."""
        secret = self.rules.Secret(*small.secret) if small.secret else None
        state = self.rules.State(
            secret=secret,
            registry=dict(small.registry),
            rows=dict.fromkeys(small.rows, 7),
            floor=small.floor,
            open_runs=small.runs,
            is_grace_over=small.is_grace_over,
        )
        found = self.rules.decide(state, command)
        if isinstance(found, self.rules.Refusal):
            assert found.happened
            assert (found.remedy == Remedy.RESTORE) == bool(found.needs), (small, command, found)
            assert len(found.needs) <= 2, (small, command, found)
            assert found.remedy != Remedy.RESTORE or not found.needs <= set(small.secret), (small, command, found)
            assert command != Command.INIT_KEYS or found.remedy == Remedy.RESTORE
            return found
        lost = set(small.rows) - set(small.secret)
        if found.step in {Step.BEGIN, Step.CREATE, Step.RETIRE, Step.FORGET}:
            assert not lost, ("a row needs a key that the secret lacks", small, command, found)
        if found.step == Step.BEGIN:
            assert (found.from_version, found.to_version, len(small.secret)) == (
                small.secret[0],
                small.secret[0] + 1,
                1,
            )
            assert all(version < found.to_version for version, _ in small.registry)
        if found.step == Step.CREATE:
            assert (small.registry, small.rows, small.floor) == ((), (), 0)
        if found.step in {Step.CONTINUE, Step.RETIRE, Step.FORGET}:
            assert (found.to_version, found.from_version) == small.secret, (small, command, found)
        if found.step in {Step.RETIRE, Step.FORGET}:
            assert not set(small.rows) - {found.to_version}, (small, command, found)
            assert found.step == Step.FORGET or small.is_grace_over
            assert (found.step == Step.FORGET) == dict(small.registry).get(found.from_version, False)
        assert command != Command.RESUME or found.step in {Step.CONTINUE, Step.NOTHING}
        allowed = {
            Command.ROTATE: {Step.BEGIN, Step.CONTINUE},
            Command.RESUME: {Step.CONTINUE, Step.NOTHING},
            Command.RETIRE: {Step.RETIRE, Step.FORGET, Step.NOTHING},
            Command.INIT_KEYS: {Step.CREATE, Step.REGISTER},
        }
        assert found.step in allowed[command]
        assert Run("index", 1, 2) not in found.supersedes
        return found

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
            )
        if action.step in {Step.RETIRE, Step.FORGET}:
            registry[old] = True
            runs -= {Run("retirement", old, new)}
            assert not {each for each in runs if each.kind != "index"}, (small, action)
            floor = max(small.floor, new)
            return small._replace(secret=(new,), registry=tuple(sorted(registry.items())), floor=floor, runs=runs)
        if action.step in {Step.CREATE, Step.REGISTER}:
            secret = small.secret or (1,)
            registry = dict.fromkeys(secret, False) | registry
            return small._replace(secret=secret, registry=tuple(sorted(registry.items())), runs=runs)
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
                more = self.remedies(small._replace(secret=each), command)
                yield more[0] + 1, more[1] + 1
            return
        if refusal.remedy == Remedy.WAIT:
            yield self.remedies(small._replace(is_grace_over=True), command)  # nothing is done in a wait
            return
        other = {
            Remedy.ROTATE: Command.ROTATE,
            Remedy.RETIRE: Command.RETIRE,
            Remedy.INIT_KEYS: Command.INIT_KEYS,
        }[refusal.remedy]
        acted = self.decided(small, other)
        if isinstance(acted, self.rules.Refusal):  # only the grace period can be in the way
            assert (other, acted.remedy) == (Command.RETIRE, Remedy.WAIT), (small, command, acted)
            small = small._replace(is_grace_over=True)
            acted = self.decided(small, other)
        reached = self.done(small, acted)
        assert reached != small, ("the remedy changes nothing", small, command, refusal)
        more = self.remedies(reached, command)
        yield more[0] + 1, more[1]


def check(most: int, rules: Any = decision) -> tuple[int, dict[str, int]]:
    """Assert all properties over all states of so many versions; return their number and the most remedies by command."""
    simulation, count, worst = Simulation(rules, most), 0, dict.fromkeys(Command, 0)
    for small in space(most):
        count += 1
        found = [simulation.decided(small, command) for command in Command]
        needs = {each.needs for each in found if isinstance(each, rules.Refusal) and each.needs}
        assert len(needs) <= 1, ("remedies contradict", small, found)
        for command in Command:
            remedies, restored = simulation.remedies(small, command)
            assert restored <= MOST_RESTORED, (small, command, restored)
            if is_possible(small):
                worst[command] = max(worst[command], remedies)
                assert remedies <= MOST_REMEDIES, (small, command, remedies)
    return count, {str(command): most for command, most in worst.items()}


def is_possible(small: Small) -> bool:
    """Say whether the tool and a restore can lead here: two live versions, and nothing that the registry never knew."""
    newest = max((version for version, _ in small.registry), default=0)
    return len({*small.rows, newest}) <= 2 and newest >= max((*small.rows, small.floor), default=0)


def test_every_state_of_three_versions_leads_to_an_end() -> None:
    """No key is made while a row needs one that is missing, and no refusal is without a remedy that works."""
    assert check(2)[0] > 1_000


if __name__ == "__main__":
    started = time.process_time()
    print(check(int(sys.argv[1])), time.process_time() - started)
