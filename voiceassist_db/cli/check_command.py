"""``voiceassist-db check``."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import click

from voiceassist_db.cli.attending import attended
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import emit_json, json_option, say

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
@json_option
def command(as_json: bool) -> None:
    """Check whether keys and patients' values are safe: settings, the way to the server, role, names, ciphers, this process.

    It checks for the role of DATABASE_URL, so run it as the application's role, and as the rotator's. It sends and needs no key.
    """
    from voiceassist_db import config
    from voiceassist_db.checking import Verdict, check
    from voiceassist_db.engine import create_engine
    from voiceassist_db.execution import translated

    trust_local = config.trust_local()
    engine = create_engine(config.database_url(), trust_local=trust_local)
    try:
        with attended(engine), translated(), engine.connect() as connection:
            lines = check(connection, trust_local=trust_local)
    finally:
        engine.dispose()
    lines.append(_key_store())
    is_safe = all(each.verdict is not Verdict.UNSAFE for each in lines)
    if as_json:
        emit_json({"safe": is_safe, "checks": [dataclasses.asdict(each) for each in lines]})
    else:
        for each in lines:
            say(f"{each.verdict.value:6}  {each.subject}: {each.detail}")
            if each.remedy:
                say(f"        {each.remedy}")
        unsafe = sum(each.verdict is Verdict.UNSAFE for each in lines)
        say("safe" if is_safe else f"NOT SAFE: {unsafe} of {len(lines)} lines")
    if not is_safe:
        sys.exit(1)


def _key_store() -> Line:
    from voiceassist_db import config
    from voiceassist_db.checking import Line, Verdict

    problem = config.key_store_problem()
    if problem is None:
        return Line("key store", Verdict.OK, "is reached by TLS or on this machine, or is not configured here")
    return Line("key store", Verdict.UNSAFE, problem)
