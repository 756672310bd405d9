"""``voiceassist-db init-keys``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from voiceassist_db.cli.attending import attended
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import emit_json, json_option, say
from voiceassist_db.commands import RETIRE, ROTATE_INDEX

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from voiceassist_db.keys import KeyProvider
    from voiceassist_db.weak_values import WeakValues

SCHEMES = ("bound", "direct")


@click.command("init-keys", cls=Command)
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
    help="How a key that the database does not know yet is used; 'bound' by default. 'direct' adopts rows that were written by a bare "
    "pgp_sym_encrypt(value, key), and needs the tables' owner.",
)
@click.option(
    "--join",
    is_flag=True,
    help="Use the keys of other databases, which are then rotated together. Without it, keys that others use are refused.",
)
@click.option(
    "--forget",
    "forgotten",
    metavar="DATABASE",
    help="Instead: remove a database that no longer exists from the list of those that use the keys, by its name or identity.",
)
@json_option
def command(scheme: str | None, join: bool, forgotten: str | None, as_json: bool) -> None:
    """Create the first keys in Vault, if there are none, and register them in the database.

    Writes by check-and-set and never overwrites a key; repeating it changes nothing. A secret that holds only `key`, as
    `vault kv put secret/voiceassist/encryption key=...` leaves it, becomes version 1 and gets an index_key beside it.
    """
    from voiceassist_db import config
    from voiceassist_db.engine import create_engine
    from voiceassist_db.errors import ConfigurationError
    from voiceassist_db.execution import translated
    from voiceassist_db.initialisation import initialise_keys
    from voiceassist_db.keyring import Here
    from voiceassist_db.keys import Scheme
    from voiceassist_db.models import packets
    from voiceassist_db.schema import allow_direct_format

    if forgotten is not None and (scheme or join):
        raise click.UsageError("--forget goes with --json only")
    provider = config.key_provider()
    engine = create_engine(config.database_url(), **config.engine_options())
    try:
        if forgotten is not None:
            _forget(engine, provider, forgotten, as_json=as_json)
            return
        with attended(engine):
            Here.known(engine)  # on disk before the key store learns it
        with attended(engine), translated(), engine.begin() as connection:
            weak = _adopted(connection) if scheme == Scheme.DIRECT.value else []
            done = initialise_keys(provider, connection, scheme=Scheme(scheme or Scheme.BOUND), join=join)
            if scheme is not None and scheme != done.scheme.value:
                raise ConfigurationError(
                    f"key version {done.version} is registered with scheme {done.scheme.value}: its rows are written that way, "
                    "and it cannot change"
                )
            if done.scheme is Scheme.DIRECT and scheme is None:
                weak = _adopted(connection)
            if done.scheme is Scheme.DIRECT and done.registered:
                allow_direct_format(connection)
    finally:
        engine.dispose()
    for each in weak:
        count = f"{each.values:,} value{'s' if each.values > 1 else ''}"
        say(f"{each.table}.{each.field}: {count}, of which each {packets.described(each.weakness)}", err=True)
    if as_json:
        emit_json(dataclasses.asdict(done) | {"databases": {str(each): name for each, name in done.databases.items()}})
        return
    say(f"created in the key store: {', '.join(done.created) or 'nothing, the keys were there'}")
    versions = ", ".join(map(str, done.registered))
    say(
        f"registered in the database: {f'version {versions}' if versions else 'nothing, it knew them'} (scheme {done.scheme.value})"
    )
    if len(done.databases) > 1:
        say(f"databases that use these keys: {'; '.join(done.databases.values())}")
    if done.scheme is Scheme.DIRECT:
        say("rows that were written without this package have no blind index: they are read by id, and not searched")


def _forget(engine: Engine, provider: KeyProvider, name: str, *, as_json: bool) -> None:
    from voiceassist_db.execution import translated
    from voiceassist_db.keyring import Here, forget
    from voiceassist_db.keyring.members import members

    with attended(engine), translated(), engine.connect() as connection:
        removed, left = forget(provider, Here.of(connection), name)
    listed = {str(each): member.name for each, member in members(left).items()}
    if as_json:
        emit_json({"forgotten": removed.name, "databases": listed})
        return
    say(f"{removed.name} is forgotten. Databases that use these keys: {'; '.join(listed.values())}")
    if left.previous_version is not None or left.previous_index_key is not None:
        say(f"if nothing else needs the older key, run `{RETIRE}` or `{ROTATE_INDEX}` again, which removes it")


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
