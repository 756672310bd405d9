"""``voiceassist-db provision``."""

from __future__ import annotations

import dataclasses

import click

from voiceassist_db.cli.attending import attended, say_skipped
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import emit_json, json_option, say

NEEDS_SUPERUSER = "42501"


@click.command("provision", cls=Command)
@click.option(
    "--owner", default="voiceassist_owner", show_default=True, help="Owns the tables: migrates, retires keys."
)
@click.option("--app", default="voiceassist_app", show_default=True, help="The application: reads and writes rows.")
@click.option("--rotator", default="voiceassist_rotator", show_default=True, help="Rotates keys.")
@click.option(
    "--auditor", default="voiceassist_auditor", show_default=True, help="Sees versions and sizes; opens nothing."
)
@click.option("--print", "only_print", is_flag=True, help="Print the SQL, for somebody else to run; change nothing.")
@json_option
def command(*, owner: str, app: str, rotator: str, auditor: str, only_print: bool, as_json: bool) -> None:
    r"""Create the roles of a deployment, or adopt ones that exist, each with its rights and with logging of parameters off.

    Run it as a superuser in DATABASE_URL before the first migration and after each one that creates a table: it may be repeated
    at any time, and looks at what is there. Roles are made without a password: set it by psql's \password, or let them log in by
    certificate. Objects of other roles that statements could find by name are listed and left as they are. Sessions take the
    settings when they begin: reconnect what is connected (pgbouncer: RECONNECT).
    """
    from voiceassist_db import config
    from voiceassist_db.engine import create_engine
    from voiceassist_db.errors import DatabaseError, ProvisioningError
    from voiceassist_db.execution import translated
    from voiceassist_db.provisioning import Roles, leftovers, provision, statements, without_password

    roles = Roles(owner=owner, app=app, rotator=rotator, auditor=auditor)
    engine = create_engine(config.database_url(), **config.engine_options())
    try:
        with attended(engine), translated("roles"), engine.begin() as connection:
            made = statements(connection, roles) if only_print else provision(connection, roles)
            left = leftovers(connection, roles)
            open_roles = without_password(connection, roles)
        say_skipped(engine)
    except DatabaseError as error:
        if error.sqlstate != NEEDS_SUPERUSER:
            raise
        raise ProvisioningError(
            "this role may not provision others: run it as a superuser, or give the output of `voiceassist-db provision --print` to one"
        ) from None
    finally:
        engine.dispose()
    if as_json:
        findings = [dataclasses.asdict(each) for each in left]
        result = {"roles": list(roles.names()), "statements": made, "executed": not only_print, "leftovers": findings}
        emit_json(result)
    elif only_print:
        for statement in ("BEGIN", *made, "COMMIT"):
            say(f"{statement};")
        for finding in left:
            say(f"left as it is: {finding}", err=True)
    else:
        say(f"{', '.join(roles.names())}: {len(made)} statements executed (--print shows them)")
        for finding in left:
            say(f"left as it is: {finding}")
        passwords = f"give passwords to {', '.join(open_roles)} with psql's \\password, " if open_roles else ""
        say(f"next: {passwords}reconnect, and run `voiceassist-db check` as each role")
