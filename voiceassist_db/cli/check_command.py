"""``voiceassist-db check``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from voiceassist_db.cli.attending import attended
from voiceassist_db.cli.databases import Databases, Target, databases_option
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.fleet import Result, deliver
from voiceassist_db.cli.output import json_option, say

if TYPE_CHECKING:
    from voiceassist_db.checking import Line


@click.command(
    "check",
    cls=Command,
    exit_codes={
        0: "safe",
        1: "something is unsafe, and its line says how to fix it; or the check failed",
        2: "wrong usage",
    },
)
@databases_option
@json_option
def command(databases: Databases, as_json: bool) -> None:
    """Check whether keys and patients' values are safe: settings, the way to the server, role, names, ciphers, this process.

    It checks for the role of DATABASE_URL, so run it as the application's role, and as the rotator's. It sends and needs no key.
    """
    from voiceassist_db import config

    trust_local = config.trust_local()
    deliver(databases.targets(), lambda target: _checked(target, trust_local=trust_local), as_json=as_json)


def _checked(target: Target, *, trust_local: bool) -> Result:
    from voiceassist_db.checking import Verdict, check
    from voiceassist_db.engine import create_engine
    from voiceassist_db.execution import translated

    engine = create_engine(target.url, trust_local=trust_local)
    try:
        with attended(engine), translated(), engine.connect() as connection:
            lines = check(connection, trust_local=trust_local)
    finally:
        engine.dispose()
    lines.append(_key_store())
    unsafe = sum(each.verdict is Verdict.UNSAFE for each in lines)
    report = {"safe": not unsafe, "checks": [dataclasses.asdict(each) for each in lines]}
    return Result(report, lambda: _show(lines, unsafe), code=int(unsafe > 0))


def _show(lines: Sequence[Line], unsafe: int) -> None:
    for each in lines:
        say(f"{each.verdict.value:6}  {each.subject}: {each.detail}")
        if each.remedy:
            say(f"        {each.remedy}")
    say(f"NOT SAFE: {unsafe} of {len(lines)} lines" if unsafe else "safe")


def _key_store() -> Line:
    from voiceassist_db import config
    from voiceassist_db.checking import Line, Verdict

    problem = config.key_store_problem()
    if problem is None:
        return Line("key store", Verdict.OK, "is reached by TLS or on this machine, or is not configured here")
    return Line("key store", Verdict.UNSAFE, problem)
