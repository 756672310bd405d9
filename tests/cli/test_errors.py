"""What goes wrong around a command is told in one line with the next step, exit code 1, and without any secret."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.cli.conftest import ROTATE, Run
from tests.conftest import plain
from voiceassist_db import config
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.errors import ConfigurationError

KEY = base64.b64encode(bytes(range(32))).decode()
NEEDS_KEYS = ["init-keys", "verify", "import", "rotate"]
NEEDS_DATABASE = [*NEEDS_KEYS, "status"]
NOBODY = "127.0.0.1:1"


Error = Callable[[str, dict[str, str]], str]


@pytest.fixture
def error(run: Run, tmp_path: Path) -> Error:
    """A function that runs a command that must fail, and returns its message."""
    file = tmp_path / "patients.csv"
    file.write_text("patient_id\nPT-001\n")

    def call(name: str, env: dict[str, str]) -> str:
        if name == "rotate":
            return run(env=env, command=rotate_command).error
        return run(*([name, str(file)] if name == "import" else [name]), env=env).error

    return call


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    """Return an environment less some variables."""
    return {name: value for name, value in environment.items() if name not in names}


def test_no_database_is_named(error: Error, environment: dict[str, str]) -> None:
    """Without DATABASE_URL, the message says how to set it, and how to try without a server."""
    for name in NEEDS_DATABASE:
        message = error(name, without(environment, "DATABASE_URL"))
        assert "DATABASE_URL is not set" in message
        assert "voiceassist-db dev" in message


def test_the_database_is_down(error: Error, environment: dict[str, str]) -> None:
    """Where nobody answers, the message names the variable and not its password."""
    for name in NEEDS_DATABASE:
        message = error(name, environment | {"DATABASE_URL": f"postgresql://me:hunter2@{NOBODY}/clinic"})
        assert "DATABASE_URL" in message
        assert "hunter2" not in message


def test_the_database_was_not_migrated(error: Error, environment: dict[str, str], empty_url: URL) -> None:
    """An empty database is told apart from a broken one."""
    for name in NEEDS_DATABASE:
        message = error(name, environment | {"DATABASE_URL": plain(empty_url)})
        assert "voiceassist-db migrate" in message


def test_the_address_is_of_another_kind(error: Error, environment: dict[str, str]) -> None:
    """An address that is not PostgreSQL's is refused without being repeated."""
    for name in NEEDS_DATABASE:
        message = error(name, environment | {"DATABASE_URL": "mysql://me:hunter2@host/clinic"})
        assert "postgresql://" in message
        assert "hunter2" not in message


def test_the_key_store_is_down(error: Error, environment: dict[str, str]) -> None:
    """Where Vault does not answer, the message names it."""
    for name in NEEDS_KEYS:
        assert "VAULT_ADDR" in error(name, environment | {"VAULT_ADDR": f"http://{NOBODY}"})


def test_no_key_store_is_named(error: Error, environment: dict[str, str]) -> None:
    """Without any, the message says what to set; with an address alone, which login is missing."""
    for name in NEEDS_KEYS:
        assert "VAULT_ADDR" in error(name, without(environment, "VAULT_ADDR", "VAULT_TOKEN"))
        assert "VAULT_TOKEN" in error(name, without(environment, "VAULT_TOKEN"))


def test_two_key_stores_are_named(error: Error, environment: dict[str, str]) -> None:
    """A development key beside Vault is a contradiction, and is not decided in silence."""
    for name in NEEDS_KEYS:
        message = error(name, environment | {"ENCRYPTION_KEY": KEY})
        assert "VAULT_ADDR and ENCRYPTION_KEY are both set" in message


def test_the_token_is_wrong(error: Error, environment: dict[str, str]) -> None:
    """A login that is refused is not a server that is down, and the token is not repeated."""
    for name in NEEDS_KEYS:
        message = error(name, environment | {"VAULT_TOKEN": "hvs.WRONGTOKENWRONGTOKEN"})
        assert "token" in message.lower()
        assert "WRONGTOKEN" not in message


def test_there_are_no_keys_yet(error: Error, environment: dict[str, str], vault_path: str) -> None:
    """An empty path in the key store says where it looked."""
    for name in ["verify", "import", "rotate"]:
        message = error(name, environment | {"VOICEASSIST_DB_VAULT_PATH": vault_path + "/elsewhere"})
        assert "init-keys" in message or "VOICEASSIST_DB_VAULT_PATH" in message


def test_a_malformed_development_key_is_not_repeated(error: Error, environment: dict[str, str]) -> None:
    """What is not 32 bytes in base64 is refused by its name alone."""
    for key in ["short", "", KEY[:-4], KEY + KEY]:
        message = error("verify", without(environment, "VAULT_ADDR", "VAULT_TOKEN") | {"ENCRYPTION_KEY": key})
        assert "ENCRYPTION_KEY" in message
        assert not key or key not in message


def test_a_process_ends_with_the_message(run_process: Run, environment: dict[str, str]) -> None:
    """What the other tests see in this process is what a shell sees: one line on standard error, and code 1."""
    assert "DATABASE_URL is not set" in run_process("status", env=without(environment, "DATABASE_URL")).error
    assert "VAULT_ADDR" in run_process(env=environment | {"VAULT_ADDR": f"http://{NOBODY}"}, command=ROTATE).error


@pytest.mark.wide
def test_a_development_key_works_and_warns_and_cannot_rotate(
    run_process: Run, fresh_environment: dict[str, str]
) -> None:
    """Without Vault, keys and import work under a loud warning; a rotation is refused before it begins."""
    env = without(fresh_environment, "VAULT_ADDR", "VAULT_TOKEN", "VOICEASSIST_DB_VAULT_PATH") | {"ENCRYPTION_KEY": KEY}
    for arguments in (["init-keys", "--json"], ["import", "-", "--json"]):
        done = run_process(*arguments, env=env, given="patient_id,name\nPT-001,Zoë\n")
        assert done.code == 0
        assert "for development only" in done.stderr
        assert done.json
    rotate = run_process(env=env, command=ROTATE)
    assert rotate.code == 1
    assert "cannot be created or rotated" in rotate.stderr


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("postgresql://app@db1/clinic?nonsense=x", "the parameter nonsense,"),
        ("postgresql://app@db1/clinic?sslmode=verify-full&ssl_mode=x&pool=5", "the parameter pool, ssl_mode,"),
        ("postgresql://app:se@cret?word=1@db1/clinic", "a parameter,"),
        ("postgresql://app@db1/clinic?Secret%20=x", "a parameter,"),
    ],
)
def test_a_parameter_that_nobody_knows_is_named(address: str, named: str) -> None:
    """Before a connection is tried. What may be a part of a password is not shown."""
    with pytest.raises(
        ConfigurationError, match=f"DATABASE_URL has {re.escape(named)} which PostgreSQL's client"
    ) as refused:
        config.parse_database_url(address)
    assert "word" not in str(refused.value).replace("password", "")
    assert "Secret" not in str(refused.value)


def test_each_parameter_of_libpq_is_accepted() -> None:
    """Among them several hosts, and those that a socket's address needs."""
    url = config.parse_database_url(
        "postgresql:///clinic?host=/run/a&host=/run/b&port=1&user=app&application_name=x&target_session_attrs=read-write"
    )
    assert url.query["host"] == ("/run/a", "/run/b")
