"""``voiceassist-db retire``."""

from __future__ import annotations

import click

from voiceassist_db.cli.databases import Databases, databases_option
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import json_option
from voiceassist_db.cli.rotate_command import grace_option
from voiceassist_db.cli.rotating import EXIT_ACTIVE, EXIT_INTERRUPTED, EXIT_REFUSED, Asked, carry_out


@click.command(
    "retire",
    cls=Command,
    exit_codes={
        0: "done, or there is nothing to retire",
        EXIT_REFUSED: "refused or failed, and why",
        2: "wrong usage",
        EXIT_ACTIVE: "another run is active",
        EXIT_INTERRUPTED: "interrupted before all databases were done; run it again to go on",
    },
)
@grace_option("Days")
@databases_option
@json_option
def command(databases: Databases, *, grace_days: float, as_json: bool) -> None:
    """End the previous key version, which no row may need any more, and remove its key from Vault.

    It is refused while anything needs that key: a row, another database on the same secret, or a backup of the grace period. From then
    on the tables accept no row under that version. Run it as the owner of the tables, which DATABASE_URL names.

    With several databases on one secret, the key leaves the secret after the last one. A database that fails stops no other one.
    """
    from voiceassist_db.rotation import Pace

    carry_out(databases, Asked(pace=Pace(), grace_days=grace_days), as_json=as_json)
