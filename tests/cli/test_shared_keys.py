"""`init-keys` where other databases use the keys, and where the database has rows already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy import URL, Engine, make_url, text

from tests.cli.conftest import Run
from tests.conftest import drop, plain
from voiceassist_db import Database, Patient
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.errors import ConfigurationError, WrongKeyError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import registered_keys
from voiceassist_db.keys import Key, KeySet, Scheme
from voiceassist_db.pgcrypto.expressions import OPTIONS
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate


@pytest.fixture
def second(
    environment: dict[str, str], new_database: Callable[[str | None], URL], template: str, server_url: URL
) -> Iterator[dict[str, str]]:
    """The environment of another migrated database, with the same secret; it has no key yet."""
    url = new_database(template)
    yield environment | {"DATABASE_URL": plain(url)}
    drop(url, server_url)


def name_of(environment: dict[str, str]) -> str:
    """Return what a database is called in the key store."""
    url = make_url(environment["DATABASE_URL"])
    return f"{url.database} on {url.host}:{url.port}"


def test_a_second_database_joins_and_is_forgotten(
    run: Run, environment: dict[str, str], second: dict[str, str], provider: VaultKeyProvider
) -> None:
    """Each step in words: refused, joined, waited for, forgotten; and the key is removed by the next retirement."""
    before = provider.fetch()
    refused = run("init-keys", env=second).error
    assert f"the keys are those of {name_of(environment)}, and no key is registered" in refused
    assert provider.fetch() == before
    joined = run("init-keys", "--join", env=second)
    assert (joined.code, joined.stderr) == (0, "")
    (listed,) = [line for line in joined.stdout.splitlines() if line.startswith("databases that use these keys: ")]
    assert set(listed.partition(": ")[2].split("; ")) == {name_of(environment), name_of(second)}
    assert run(env=environment, command=rotate_command).code == 0
    retired = run("--retire", "--grace-days", "0", env=environment, command=rotate_command)
    assert retired.code == 0
    assert f"It stays in the key store for {name_of(second)}: run `voiceassist-db retire` there." in retired.stdout
    assert "no longer holds" not in retired.stdout
    assert list(provider.fetch().versions()) == [2, 1]
    assert f"stays in the key store for {name_of(second)}" in run(env=environment, command=rotate_command).error
    assert "cannot be forgotten here" in run("init-keys", "--forget", name_of(second), env=second).error
    unknown = run("init-keys", "--forget", "clinic", env=environment).error
    assert "no database is called clinic" in unknown
    assert name_of(second) in unknown
    wrong = run("init-keys", "--forget", "clinic", "--join", env=environment)
    assert (wrong.code, "--forget goes with --json only" in wrong.stderr) == (2, True)
    done = run("init-keys", "--forget", name_of(second), "--json", env=environment).json
    assert (done["forgotten"], list(done["databases"].values())) == (name_of(second), [name_of(environment)])
    assert run("--retire", env=environment, command=rotate_command).code == 0
    assert list(provider.fetch().versions()) == [2]


def test_a_database_is_forgotten_by_its_identity(run: Run, environment: dict[str, str], second: dict[str, str]) -> None:
    """In words: what is left, and what to run if it was the last that a key waited for."""
    joined = run("init-keys", "--join", "--json", env=second).json
    assert run(env=environment, command=rotate_command).code == 0
    done = run("init-keys", "--forget", joined["database"], env=environment)
    assert done.stdout.splitlines() == [
        f"{name_of(second)} is forgotten. Databases that use these keys: {name_of(environment)}",
        "if nothing else needs the older key, run `voiceassist-db retire` or `voiceassist-db rotate --index-key` again, which removes it",
    ]


@pytest.fixture
def fresh_key(new_provider: Callable[..., VaultKeyProvider]) -> Key:
    """The key of a secret whose database does not know it."""
    new_provider().create(replace(KeySet.generate(), databases=""))
    return new_provider().fetch().key


def add_direct(engine: Engine, key: Key, options: str = OPTIONS) -> None:
    """Add a patient as a bare `pgp_sym_encrypt` would, with options that the format checks accept."""
    statement = text(
        "INSERT INTO patient_data (id, patient_id, key_version, ssn_encrypted) VALUES "
        "(gen_random_uuid(), 'PT-1', 1, pgcrypto.pgp_sym_encrypt('900-00-0001', :key, :options))"
    )
    with engine.begin() as connection:
        connection.execute(statement, {"key": key.expose().decode(), "options": options})


def known(engine: Engine) -> dict[int, str]:
    """Return the schemes that are registered."""
    with engine.connect() as connection:
        return {version: each.scheme.value for version, each in registered_keys(connection).items()}


def test_rows_of_scheme_direct_are_not_registered_as_bound(
    run: Run,
    fresh_environment: dict[str, str],
    fresh_key: Key,
    engine: Engine,
    new_provider: Callable[..., VaultKeyProvider],
) -> None:
    """By default the scheme is `bound`, and no row would open: it is refused, and what it says to run works."""
    add_direct(engine, fresh_key)
    refused = run("init-keys", env=fresh_environment).error
    assert "patient_data.ssn under key version 1 are written with scheme direct, not bound" in refused
    assert "`voiceassist-db init-keys --scheme direct`" in refused
    assert known(engine) == {}
    assert run("init-keys", "--scheme", "direct", env=fresh_environment).code == 0
    assert known(engine) == {1: "direct"}
    with Database(engine, new_provider()).transaction() as tx:
        assert tx.patients.get("PT-1").ssn == "900-00-0001"


def test_rows_of_scheme_bound_are_not_registered_as_direct(
    run: Run, environment: dict[str, str], database: Database
) -> None:
    """A registry that was lost is made again with the scheme of the rows only; one damaged value does not hide the others."""
    with database.transaction() as tx:
        tx.patients.add_many([Patient(patient_id=f"PT-{n}", ssn=f"90000000{n}") for n in range(3)])
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM encryption_keys"))
        damaged = "UPDATE patient_data SET ssn_encrypted = set_byte(ssn_encrypted, 40, (get_byte(ssn_encrypted, 40) + 1) % 256)"
        connection.execute(text(f"{damaged} WHERE patient_id = 'PT-0'"))
    refused = run("init-keys", "--scheme", "direct", env=environment).error
    assert "patient_data.ssn under key version 1 are written with scheme bound, not direct" in refused
    assert known(database.engine) == {}
    assert run("init-keys", env=environment).code == 0
    assert known(database.engine) == {1: "bound"}


def test_rows_that_open_under_no_scheme_are_another_keys(
    run: Run, fresh_environment: dict[str, str], fresh_key: Key, engine: Engine
) -> None:
    """The wrong secret for a database whose registry is lost: nothing is registered under it."""
    add_direct(engine, Key.generate())
    for scheme in ("bound", "direct"):
        assert "open under neither scheme" in run("init-keys", "--scheme", scheme, env=fresh_environment).error
    assert known(engine) == {}
    assert fresh_key is not None


def test_both_versions_are_tried(run: Run, environment: dict[str, str], database: Database) -> None:
    """In the midst of a rotation, rows under either key are looked at when the registry is made again."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", ssn="900000001"))
    rotate(database.engine, database.keys)
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM encryption_keys"))
    assert "version 2 are written with scheme bound" in run("init-keys", "--scheme", "direct", env=environment).error
    assert run("init-keys", env=environment).code == 0
    assert known(database.engine) == {1: "bound", 2: "bound"}


def test_the_library_refuses_a_scheme_as_well(
    fresh_key: Key, engine: Engine, new_provider: Callable[..., VaultKeyProvider]
) -> None:
    """A caller that commits whatever `initialise_keys` leaves would have a registry under which no row opens."""
    add_direct(engine, fresh_key)
    with (
        pytest.raises(ConfigurationError, match="are written with scheme direct, not bound"),
        engine.begin() as connection,
    ):
        initialise_keys(new_provider(), connection)
    assert known(engine) == {}
    with engine.begin() as connection:
        initialise_keys(new_provider(), connection, scheme=Scheme.DIRECT)
    assert known(engine) == {1: "direct"}
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM encryption_keys"))
        connection.execute(text("DELETE FROM patient_data"))
    add_direct(engine, Key.generate())
    with pytest.raises(WrongKeyError, match="open under neither scheme"), engine.begin() as connection:
        initialise_keys(new_provider(), connection, scheme=Scheme.DIRECT)
    assert known(engine) == {}
