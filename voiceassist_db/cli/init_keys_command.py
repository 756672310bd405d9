"""``voiceassist-db init-keys``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from voiceassist_db.cli.attending import attended
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import emit_json, json_option, say

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from voiceassist_db.weak_values import WeakValues

SCHEMES = ("bound", "direct")


@click.command("init-keys", cls=Command)
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
    help="How a key that the database does not know yet is used; 'bound' by default. 'direct' adopts rows that were written by a bare "
    "pgp_sym_encrypt(value, key), and needs the tables' owner.",
)
@json_option
def command(scheme: str | None, as_json: bool) -> None:
    """Create the first keys in Vault, if there are none, and register them in the database.

    Writes by check-and-set and never overwrites a key; repeating it changes nothing. A secret that holds only `key`, as
    `vault kv put secret/voiceassist/encryption key=...` leaves it, becomes version 1 and gets an index_key beside it.
    """
    from voiceassist_db import config
    from voiceassist_db.engine import create_engine
    from voiceassist_db.errors import ConfigurationError
    from voiceassist_db.execution import translated
    from voiceassist_db.keyring import initialise_keys
    from voiceassist_db.keys import Scheme
    from voiceassist_db.models import packets
    from voiceassist_db.schema import allow_direct_format

    provider = config.key_provider()
    engine = create_engine(config.database_url(), **config.engine_options())
    try:
        with attended(engine), translated(), engine.begin() as connection:
            done = initialise_keys(provider, connection, scheme=Scheme(scheme or Scheme.BOUND))
            if scheme is not None and scheme != done.scheme.value:
                raise ConfigurationError(
                    f"key version {done.version} is registered with scheme {done.scheme.value}: its rows are written that way, "
                    "and it cannot change"
                )
            weak = _adopted(connection) if done.scheme is Scheme.DIRECT else []
            if done.scheme is Scheme.DIRECT and done.registered:
                allow_direct_format(connection)
    finally:
        engine.dispose()
    for each in weak:
        count = f"{each.values:,} value{'s' if each.values > 1 else ''}"
        say(f"{each.table}.{each.field}: {count}, of which each {packets.described(each.weakness)}", err=True)
    if as_json:
        emit_json(dataclasses.asdict(done))
        return
    say(f"created in the key store: {', '.join(done.created) or 'nothing, the keys were there'}")
    versions = ", ".join(map(str, done.registered))
    say(
        f"registered in the database: {f'version {versions}' if versions else 'nothing, it knew them'} (scheme {done.scheme.value})"
    )
    if done.scheme is Scheme.DIRECT:
        say("rows that were written without this package have no blind index: they are read by id, and not searched")


def _adopted(connection: Connection) -> list[WeakValues]:
    """Return which values should be rotated before the server is updated.

    Raises:
        ConfigurationError: There are values that no scheme accepts.
    """
    from voiceassist_db.catalogue import encrypted_tables
    from voiceassist_db.errors import ConfigurationError
    from voiceassist_db.models import packets
    from voiceassist_db.weak_values import weak_values

    found = [each for table in encrypted_tables(connection) for each in weak_values(connection, table)]
    if refused := [each for each in found if each.weakness not in packets.WEAK]:
        values = "; ".join(f"{each.values:,} of {each.table}.{each.field} ({each.weakness})" for each in refused)
        raise ConfigurationError(
            f"these values are no password-encrypted OpenPGP message with an integrity check: {values}. Nothing was registered. Encrypt "
            "them again in SQL, pgcrypto.pgp_sym_encrypt(pgcrypto.pgp_sym_decrypt(column, $1), $1), which adds the check. Log in as a role "
            "of `voiceassist-db provision`, and send the key as a parameter: the server logs what stands in a statement's text. Or clear "
            "them. Then run this again."
        )
    return found
