"""The rules of ``keyring.history`` and ``keyring.listing``: each is held by a trial, and a trial notices a mutant of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.members.trials import TRIALS, Rules
from voiceassist_db.errors import VoiceAssistDBError
from voiceassist_db.keyring import history, listing


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.__name__)
def test_the_rules_hold(trial: Callable[[Rules], None]) -> None:
    """Each trial is a rule of who needs which key."""
    trial(Rules())


HISTORY = {
    "the last version is not read": ("range(keys.revision - 1, max", "range(keys.revision - 2, max"),
    "the first version is not read": ("max(0, keys.revision - 1 - SEARCHED)", "max(1, keys.revision - 1 - SEARCHED)"),
    "every version is read": ("max(0, keys.revision - 1 - SEARCHED)", "0"),
    "few versions are read": ("SEARCHED: Final = 30", "SEARCHED: Final = 3"),
    "any store has a history": ("    if not isinstance(provider, KeyHistory):\n        return\n", ""),
    "a malformed version ends the search": (
        "MalformedKeyError:\n            continue",
        "MalformedKeyError:\n            return",
    ),
    "a login without the right asks for all": (
        "KeyStoreForbiddenError:\n            return",
        "KeyStoreForbiddenError:\n            continue",
    ),
    "an outage is an empty history": ("except KeyStoreForbiddenError:", "except Exception:"),
    "a destroyed version is read": (
        "        if earlier is not None:\n            yield earlier",
        "        yield earlier",
    ),
    "another secret is this one": ("any(_share(one, each) for each in related)", "True"),
    "keys are followed once": ("        related += new\n", "        related += new\n        break\n"),
    "the key does not relate": ("given = (keys.key, keys.previous_key,", "given = (keys.previous_key,"),
    "the previous key does not relate": ("given = (keys.key, keys.previous_key,", "given = (keys.key,"),
    "the index key does not relate": (" keys.index_key, keys.previous_index_key)", " keys.previous_index_key)"),
    "the previous index key does not relate": (" keys.index_key, keys.previous_index_key)", " keys.index_key)"),
    "a store without a list gets one": ("    if keys.databases is None:\n        return keys\n    left", "    left"),
    "nobody is told who comes back": ("if each not in members(keys)]:", "if False]:"),
    "all are told as if they came back": ("if each not in members(keys)]:", "]:"),
    "what a rollback undid does not count": ("in _told(_undone(keys, earlier)).items():", "in ():"),
    "what a rollback undid counts alone": ("_either(listed[identity], member) if", "member if"),
    "what a rollback undid counts for new ones only": ("_either(listed[identity], member) if", "listed[identity] if"),
    "who is missing stays so": ("        told.setdefault(identity, member)\n    return", "        pass\n    return"),
    "an earlier entry counts more": (
        "        told.setdefault(identity, member)\n    return",
        "        told[identity] = member\n    return",
    ),
    "the oldest entry counts": ("found.setdefault(identity, member)", "found[identity] = member"),
    "a spoilt list is an error": (
        "except MalformedKeyError:\n        return {}",
        "except MalformedKeyError:\n        raise",
    ),
    "any earlier version was undone": ("return earlier[changed : is_same.index(True, changed)]", "return earlier"),
    "without a rollback all is undone": (
        "        return ()\n    return earlier[changed",
        "        return earlier\n    return earlier[changed",
    ),
    "nothing is undone after a write": (
        "earlier[changed : is_same",
        "earlier[0:0] if changed else earlier[changed : is_same",
    ),
    "the newer need counts": ("min(one.oldest, other.oldest)", "max(one.oldest, other.oldest)"),
    "one of two index keys is enough": ("one.index if one.index == other.index else None", "one.index"),
    "either list forgets": ("other.forgotten_at and one.forgotten_at", "other.forgotten_at or one.forgotten_at"),
    "neither list forgets": ("other.forgotten_at and one.forgotten_at", "None"),
    "the same key is a newer one": ("if each.version > keys.version:", "if each.version >= keys.version:"),
    "no key is newer": ("if each.version > keys.version:", "if False:"),
    "the first newer key counts": ("max(newest.get(identity, 0), each.version)", "each.version"),
    "who is not listed has a newer key": (
        "if each in known and (here is None or each != here.id)\n    )\n\n\ndef index",
        "if (here is None or each != here.id)\n    )\n\n\ndef index",
    ),
    "this database is another one": (
        "if each in known and (here is None or each != here.id)\n    )\n\n\ndef index",
        "if each in known\n    )\n\n\ndef index",
    ),
    "no index key is an index key": ("if keys.index_key is not None and each.prev", "if each.prev"),
    "any index key is newer": ("each.previous_index_key == keys.index_key]", "True]"),
    "who is not listed has a newer index key": (
        "for each in found if each in known and (here",
        "for each in found if (here",
    ),
    "this database has a newer index key": (
        "for each in found if each in known and (here is None or each != here.id))",
        "for each in found if each in known)",
    ),
}

LISTING = {
    "a write leaves the list": ("change(completed(provider, held))", "change(held)"),
    "what has not changed is written": ("        if wanted == held:\n            return held\n", ""),
    "a conflict ends it": ("            conflict = error\n            continue", "            raise"),
    "a conflict is tried once more only": ("for _ in range(ATTEMPTS):", "for _ in range(2):"),
    "a conflict is tried too often": ("for _ in range(ATTEMPTS):", "for _ in range(ATTEMPTS + 1):"),
    "a list that begins is not told": ("            _tell_of_list(wanted)", "            pass"),
    "every list is told": (" and not members(held) and members(wanted):", ":"),
    "a list is told where none is kept": (
        "if held.databases is not None and not members(held)",
        "if not members(held)",
    ),
    "what was wanted is returned": ("        return provider.fetch()\n    assert", "        return wanted\n    assert"),
    "who is listed joins again": ("keys if here.id in listed else joined(keys, here)", "joined(keys, here)"),
    "a list that is not kept is empty": (
        "return None if left.databases is None else members(left)",
        "return members(left)",
    ),
    "one of several is forgotten": ("        if len(found) != 1:", "        if not found:"),
    "a name is not enough": ("if which in {str(each), member.name}]", "if which == str(each)]"),
    "an identity is not enough": ("if which in {str(each), member.name}]", "if which == member.name]"),
    "a stranger forgets": ("        if here is None or here.id not in listed:", "        if False:"),
    "an unlisted database forgets": ("        if here is None or here.id not in listed:", "        if here is None:"),
    "a database forgets itself": ("        if found[0] == here.id:", "        if False:"),
    "no mark is left": (
        "entries(keys) | {found[0]: replace(removed[0], forgotten_at=keys.revision)}",
        "{each: m for each, m in entries(keys).items() if each != found[0]}",
    ),
    "a mark has no revision": ("forgotten_at=keys.revision", "forgotten_at=0"),
}


@pytest.mark.wide
@pytest.mark.parametrize("name", HISTORY)
def test_a_mutant_of_the_history_is_caught(name: str) -> None:
    """Each rule that is taken away is noticed by a trial."""
    mutated = mutant(history, *HISTORY[name])
    assert_caught(Rules(mutated, mutant(listing, "", "", completed=mutated.completed)))


@pytest.mark.wide
@pytest.mark.parametrize("name", LISTING)
def test_a_mutant_of_the_list_is_caught(name: str) -> None:
    """The same for the writes of the secret."""
    assert_caught(Rules(history, mutant(listing, *LISTING[name])))


def assert_caught(rules: Rules) -> None:
    """Assert that a trial fails."""
    for trial in reversed(TRIALS):  # the walks last, which take longest
        try:
            trial(rules)
        except (AssertionError, pytest.fail.Exception, VoiceAssistDBError, LookupError, TypeError, AttributeError):
            return
    pytest.fail("no trial noticed it")


def mutant(module: ModuleType, rule: str, instead: str, **names: Any) -> Any:
    """Return a module with one of its rules exchanged; an empty rule leaves it as it is."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert not rule or source.count(rule) == 1, rule
    made = ModuleType("mutant")
    exec(compile(source.replace(rule, instead) if rule else source, "mutant", "exec"), made.__dict__)  # noqa: S102  # our own source
    vars(made).update(names)
    return made
