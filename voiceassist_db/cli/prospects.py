"""One pair of key versions for several databases on one secret: which of them may make the next key.

A database that has not finished the pair of the secret's two keys comes first. If another one made the next key before, the older
key would have to leave the secret while that database needs it. So first every database is asked what it would do.

Owns that rule, as a function without I/O. Asks no database by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from voiceassist_db.cli.databases import Target
from voiceassist_db.cli.output import about
from voiceassist_db.decision import Action, Refusal, Remedy, Step
from voiceassist_db.errors import VoiceAssistDBError

Prospect = Action | Refusal | VoiceAssistDBError
"""What a database would do; or why it could not be asked."""

COMPLETE: Final = "complete already: nothing to do"


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


def lacking(prospects: Mapping[str, Prospect]) -> list[str]:
    """Return the names of the databases that need a key which the secret lacks."""
    return [name for name, prospect in prospects.items() if _lacks_key(prospect)]


def _lacks_key(prospect: Prospect) -> bool:
    return isinstance(prospect, Refusal) and prospect.remedy is Remedy.RESTORE


def survey(
    targets: Sequence[Target], ask: Callable[[Target], Prospect], *, is_stopping: Callable[[], bool]
) -> dict[str, Prospect]:
    """Ask every database what it would do, until the command shall stop; one that fails stops no other one."""
    found: dict[str, Prospect] = {}
    for target in targets:
        if is_stopping():
            break
        with about(target.name):
            try:
                found[target.name] = ask(target)
            except VoiceAssistDBError as error:
                found[target.name] = error
    return found
