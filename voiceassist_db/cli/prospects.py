"""Several databases on one secret: what must hold of all of them before the first one is changed.

A database that has not finished the pair of the secret's two keys comes first. If another one made the next key before, the older
key would have to leave the secret while that database needs it. And no key may end while the secret does not list a database that
may need it. So first every database is asked who it is, and what it would do.

Owns these rules, as functions without I/O. Asks no database by itself.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from voiceassist_db.cli.databases import DEFAULT_HOST, Target
from voiceassist_db.cli.output import about
from voiceassist_db.decision import Action, Refusal, Remedy, Step
from voiceassist_db.errors import RotationError, VoiceAssistDBError

if TYPE_CHECKING:
    from voiceassist_db.keyring.members import Here, Member

Prospect = Action | Refusal | VoiceAssistDBError
"""What a database would do; or why it could not be asked."""

COMPLETE: Final = "complete already: nothing to do"


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a database before any is changed.

    Attributes:
        here: Who it is; None where that is not known.
        prospect: What it would do.
    """

    here: Here | None
    prospect: Prospect

    @property
    def uses_secret(self) -> bool:
        """Whether it has registered the keys of the secret."""
        if isinstance(self.prospect, Refusal):
            return self.prospect.remedy not in {Remedy.RESTORE, Remedy.JOIN, Remedy.INIT_KEYS}
        return isinstance(self.prospect, Action)


class Mode(StrEnum):
    """What a rotation of several databases does."""

    BEGIN = "begin"
    """The first one makes the next key, and the others continue with it."""

    FINISH = "finish"
    """Only what is unfinished: no key is made."""

    HOLD = "hold"
    """The same, because a database needs a key that the secret lacks."""


def mode_of(prospects: Iterable[Prospect]) -> Mode:
    """Return what all databases together may do."""
    found = list(prospects)
    if any(_lacks_key(each) for each in found):
        return Mode.HOLD
    if any(isinstance(each, Action) and each.step is Step.CONTINUE for each in found):
        return Mode.FINISH
    is_pair_live = any(isinstance(each, Refusal) and each.remedy in {Remedy.RETIRE, Remedy.OTHERS} for each in found)
    is_unknown = any(isinstance(each, VoiceAssistDBError) for each in found)
    return Mode.FINISH if is_pair_live and is_unknown else Mode.BEGIN


def lacking(looks: Mapping[str, Look]) -> list[str]:
    """Return the names of the databases that need a key which the secret lacks."""
    return [name for name, look in looks.items() if _lacks_key(look.prospect)]


def need(names: Sequence[str]) -> str:
    """Return that databases need something, in words."""
    *most, last = names
    return f"{', '.join(most)} and {last} need" if most else f"{last} needs"


def _lacks_key(prospect: Prospect) -> bool:
    return isinstance(prospect, Refusal) and prospect.remedy is Remedy.RESTORE and not prospect.is_of_others


def survey(
    targets: Sequence[Target], ask: Callable[[Target], Look], *, is_stopping: Callable[[], bool]
) -> dict[str, Look]:
    """Ask every database who it is and what it would do, until the command shall stop; one that fails stops no other one."""
    found: dict[str, Look] = {}
    for target in targets:
        if is_stopping():
            break
        with about(target.name):
            try:
                found[target.name] = ask(target)
            except VoiceAssistDBError as error:
                found[target.name] = Look(None, error)
    return without_copies(found)


def without_copies(looks: Mapping[str, Look]) -> dict[str, Look]:
    """Return what is known, with a refusal for databases that are one to the secret: it would take one of them for done."""
    names: dict[UUID, list[str]] = {}
    for name, look in looks.items():
        if look.here is not None:
            names.setdefault(look.here.id, []).append(name)
    told: dict[str, Look] = dict(looks)
    for same in names.values():
        for name in same if len(same) > 1 else ():
            problem = RotationError(
                f"{' and '.join(same)} have the same identity: they are one database under two names, or a snapshot of a server and its original, which the "
                "secret cannot tell apart. Nothing was changed in them. Name each database once, and give a copy a secret of its own"
            )
            told[name] = Look(looks[name].here, problem)
    return told


def unlisted(looks: Mapping[str, Look], listed: Mapping[UUID, Member]) -> list[str]:
    """Return the names of the databases that the secret does not list, so that a key could leave it while they need it.

    One that could not be asked who it is must be listed under the name that its address gives it.
    """
    names = {_spelled(each.name) for each in listed.values()}
    return [
        name
        for name, look in looks.items()
        if (_spelled(name) not in names if look.here is None else look.here.id not in listed)
    ]


def _spelled(name: str) -> str:
    """Return a name in the list's spelling: without the case of a host, and with this machine's name for its sockets."""
    database, _, server = name.rpartition(" on ")
    if server.startswith(("/", "@", DEFAULT_HOST)):
        server = f"{socket.gethostname()}:{server.rpartition(':')[2]}"
    return f"{database} on {server.lower()}"
