"""A command's work on each of its databases, and one report of it: for one database as ever, for several with their names.

Owns the report's form, and that the failure of one database stops no other one. Knows nothing of the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from voiceassist_db.cli.databases import Target
from voiceassist_db.cli.output import about, emit_json, say, say_error
from voiceassist_db.errors import VoiceAssistDBError

DATABASE_URL: Final = "DATABASE_URL"

FAILED: Final = 1
WORST_FIRST: Final = (FAILED, 6, 5, 3, 4, 0)
"""Exit codes of databases: refused or failed, interrupted, active, left over, quarantined, done."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command tells of one database.

    Attributes:
        report: What ``--json`` shows.
        show: Prints the same in words.
        code: The exit code.
    """

    report: Mapping[str, Any]
    show: Callable[[], None]
    code: int = 0


Work = Callable[[Target], Result]
CodeOf = Callable[[VoiceAssistDBError], int]


def deliver(targets: Sequence[Target], work: Work, *, as_json: bool, code_of: CodeOf = lambda _error: FAILED) -> None:
    """Do the work for each database, print the report, and end the process where its exit code is not 0.

    Args:
        targets: The databases.
        work: What to do for each. It may raise any error of ours.
        as_json: Whether the report is JSON.
        code_of: Says which exit code an error stands for, where there are several databases.

    Raises:
        VoiceAssistDBError: The work failed, and there is no other database.
    """
    if not targets[0].name:
        result = work(targets[0])
        if as_json:
            emit_json(dict(result.report))
        else:
            result.show()
        code = result.code
    else:
        code = _deliver_each(targets, work, as_json=as_json, code_of=code_of)
    if code:
        sys.exit(code)


def _deliver_each(targets: Sequence[Target], work: Work, *, as_json: bool, code_of: CodeOf) -> int:
    results: dict[str, Result] = {}
    for target in targets:
        if not as_json:
            if results:
                say("")
            say(target.name, bold=True)
        with about(target.name):
            results[target.name] = result = _attempt(target, work, code_of)
        if not as_json or "error" in result.report:
            result.show()
    code = worst(result.code for result in results.values())
    if as_json:
        each = {name: {**result.report, "exit_code": result.code} for name, result in results.items()}
        emit_json({"databases": each, "exit_code": code})
    else:
        say("")
        say(_summary(results))
    return code


def _attempt(target: Target, work: Work, code_of: CodeOf) -> Result:
    try:
        return work(target)
    except VoiceAssistDBError as error:
        message = str(error)
        code = code_of(error)
    if target.has_own_address:
        message = message.replace(DATABASE_URL, "its entry in the list")
    return Result({"error": message}, lambda: say_error(f"{target.name}: {message}"), code)


def worst(codes: Iterable[int]) -> int:
    """Return the exit code of several databases together."""
    return min(codes, key=WORST_FIRST.index)


def _summary(results: Mapping[str, Result]) -> str:
    ended = [f"{name} ended with exit code {result.code}" for name, result in results.items() if result.code]
    return "; ".join([f"{len(results) - len(ended)} of {len(results)} databases succeeded", *ended])
