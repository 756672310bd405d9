"""`voiceassist-db init-keys` creates what is missing, and never replaces what is there."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from typing import Any

import hvac
import pytest
from sqlalchemy import URL, Engine, text

from tests.cli.conftest import Run
from tests.conftest import VaultServer, plain
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import VaultKeyProvider

CONTRACT = {"created", "registered", "version", "scheme", "database", "databases"}


@pytest.fixture
def raw(vault: VaultServer, vault_path: str) -> Callable[..., dict[str, str]]:
    """A function that reads the test's secret as it is stored, after writing it if it is given one."""
    client = hvac.Client(vault.address, vault.root_token)
    mount, _, path = vault_path.partition("/")

    def access(**secret: str) -> dict[str, str]:
        if secret:
            client.secrets.kv.v2.create_or_update_secret(path, secret, mount_point=mount)
        answer = client.secrets.kv.v2.read_secret_version(path, mount_point=mount, raise_on_deleted_version=True)
        return dict(answer["data"]["data"])

    return access


def keys_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what an answer says of keys, having asserted that it says of databases that this one is the only one."""
    assert list(answer["databases"]) == [answer["database"]]
    return {name: value for name, value in answer.items() if not name.startswith("database")}


def registered(engine: Engine) -> list[tuple[int, str, str]]:
    """Return the versions that the database knows."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT version, scheme, state FROM encryption_keys ORDER BY 1"))
        return [(row.version, row.scheme, row.state) for row in rows]


def key() -> str:
    """Return a key as `openssl rand -base64 32` prints it."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def is_strict(engine: Engine) -> bool:
    """Say whether the format checks take scheme bound only."""
    query = text(
        "SELECT bool_and(pg_get_constraintdef(oid) LIKE '%c30c%') FROM pg_constraint WHERE conname ~ '_format$'"
    )
    with engine.connect() as connection:
        return bool(connection.execute(query).scalar_one())


def test_first_use_creates_and_registers_and_the_next_changes_nothing(
    run: Run, fresh_environment: dict[str, str], raw: Callable[..., dict[str, str]], engine: Engine
) -> None:
    """Two keys in Vault, version 1 in the database; repeated, it says that all was there."""
    first = run("init-keys", "--json", env=fresh_environment)
    assert (first.code, first.stderr) == (0, "")
    assert keys_of(first.json) == {"created": ["key", "index_key"], "registered": [1], "version": 1, "scheme": "bound"}
    stored = raw()
    assert {"key", "key_version", "index_key"} <= set(stored)
    assert registered(engine) == [(1, "bound", "current")]
    assert not [value for value in (stored["key"], stored["index_key"]) if value in first.stdout]
    again = run("init-keys", "--json", env=fresh_environment)
    assert keys_of(again.json) == {"created": [], "registered": [], "version": 1, "scheme": "bound"}
    assert set(again.json) == CONTRACT
    assert raw() == stored
    assert registered(engine) == [(1, "bound", "current")]


def test_the_same_in_words(run: Run, fresh_environment: dict[str, str]) -> None:
    """Without --json, two lines say what was done."""
    words = [run("init-keys", env=fresh_environment).stdout for _ in range(2)]
    assert words == [
        "created in the key store: key, index_key\nregistered in the database: version 1 (scheme bound)\n",
        "created in the key store: nothing, the keys were there\nregistered in the database: nothing, it knew them (scheme bound)\n",
    ]


def test_the_guides_own_secret_is_completed(
    run: Run, fresh_environment: dict[str, str], raw: Callable[..., dict[str, str]], engine: Engine
) -> None:
    """A secret with `key` alone is version 1, gets its index_key, and keeps its other entries to the letter."""
    given = {"key": key(), "redis_password": "hunter2 ÄÖ", "postgres_password": ""}
    raw(**given)
    done = run("init-keys", "--json", env=fresh_environment)
    assert keys_of(done.json) == {"created": ["index_key"], "registered": [1], "version": 1, "scheme": "bound"}
    stored = raw()
    assert {name: stored[name] for name in given} == given
    assert len(base64.b64decode(stored["index_key"])) == 32
    assert registered(engine) == [(1, "bound", "current")]
    assert "hunter2" not in done.stdout + done.stderr
    assert run("init-keys", "--json", env=fresh_environment).json["created"] == []
    assert raw() == stored


def test_another_key_is_never_registered_over_the_first(
    run: Run, environment: dict[str, str], raw: Callable[..., dict[str, str]], engine: Engine
) -> None:
    """Where Vault's key is not the one that the database knows, nothing is written anywhere."""
    wrong = raw() | {"key": key()}
    raw(**wrong)
    before = registered(engine)
    assert "key of version 1 is not the key" in run("init-keys", env=environment).error
    assert registered(engine) == before
    assert raw() == wrong


def test_a_key_store_that_lost_its_secret_gets_no_new_one(
    run: Run, environment: dict[str, str], new_provider: Callable[..., VaultKeyProvider], vault_path: str
) -> None:
    """The database has version 1 registered: a new key would not open its rows, so none is made."""
    elsewhere = environment | {"VOICEASSIST_DB_VAULT_PATH": vault_path + "/lost"}
    message = run("init-keys", env=elsewhere).error
    assert "the key store is empty" in message
    assert "VOICEASSIST_DB_VAULT_PATH" in message
    provider = new_provider("/lost")
    provider.create(KeySet.generate())  # conflicts if anything was created


def test_adopting_a_database_lets_its_format_in(run: Run, fresh_environment: dict[str, str], engine: Engine) -> None:
    """`--scheme direct` registers the key as it was used, and the columns take what was written with it."""
    assert is_strict(engine)
    assert run("init-keys", "--scheme", "direct", "--json", env=fresh_environment).code == 0
    assert registered(engine) == [(1, "direct", "current")]
    assert not is_strict(engine)


def test_a_known_version_keeps_its_scheme_and_its_checks(run: Run, environment: dict[str, str], engine: Engine) -> None:
    """`--scheme direct` on a database that is in use loosens nothing, for there is nothing to adopt."""
    done = run("init-keys", "--scheme", "direct", "--json", env=environment)
    assert done.code == 1
    assert "registered with scheme bound" in done.error
    assert registered(engine) == [(1, "bound", "current")]
    assert is_strict(engine)


def test_nothing_is_created_before_the_database_is_ready(
    run: Run,
    fresh_environment: dict[str, str],
    empty_url: URL,
    new_provider: Callable[..., VaultKeyProvider],
) -> None:
    """Without our tables, it fails before Vault is written, and says to migrate."""
    environment = fresh_environment | {"DATABASE_URL": plain(empty_url)}
    assert "voiceassist-db migrate" in run("init-keys", env=environment).error
    new_provider().create(KeySet.generate())  # conflicts if anything was created
