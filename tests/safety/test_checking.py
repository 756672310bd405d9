"""`check` names every unsafe thing by its own line, and is content with a deployment that was provisioned."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from tests.cli.conftest import COMMAND, ROOT
from tests.conftest import plain
from tests.safety.conftest import PASSWORD, ROLES, Deployment
from voiceassist_db import create_engine
from voiceassist_db.checking import CVES, Line, Verdict, check
from voiceassist_db.safety import SETTINGS


def lines_of(deployment: Deployment, role: str = ROLES.app) -> dict[str, Line]:
    """Return what a role's check says, by subject."""
    engine = create_engine(deployment.url(role) if role != "postgres" else deployment.server.url())
    try:
        with engine.connect() as connection:
            return {each.subject: each for each in check(connection)}
    finally:
        engine.dispose()


def unsafe(deployment: Deployment, role: str = ROLES.app) -> set[str]:
    """Return the subjects that are unsafe, but for this process's core dumps and the age of the server."""
    found = {name for name, line in lines_of(deployment, role).items() if line.verdict is Verdict.UNSAFE}
    return found - {"core dumps", *(each[0] for each in CVES)}


@contextmanager
def changed(deployment: Deployment, do: str, undo: str) -> Iterator[None]:
    """Change the server for a block."""
    deployment.admin.execute(do)
    try:
        yield
    finally:
        deployment.admin.execute(undo)


def test_a_provisioned_deployment_is_safe(deployment: Deployment) -> None:
    """For the application and for the rotator; nothing is unsafe, and each line has been looked at."""
    assert unsafe(deployment) == set()
    assert unsafe(deployment, ROLES.rotator) == set()
    subjects = {*SETTINGS, "connection", "cursors", "role", "search path", "pgcrypto"}
    subjects |= {
        "temporary objects",
        "views and indexes",
        "preloaded libraries",
        "core dumps",
        *(each[0] for each in CVES),
    }
    assert subjects == set(lines_of(deployment))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_a_line(deployment: Deployment, name: str) -> None:
    """The same rules as the engine's, with the same remedy."""
    if not deployment.has(name):
        pytest.skip(f"this server has no {name}")
    app = ROLES.app
    with changed(deployment, f"ALTER ROLE {app} RESET {name}", f"ALTER ROLE {app} SET {name} = {SETTINGS[name]}"):
        assert unsafe(deployment) == {name}
        assert lines_of(deployment)[name].remedy == f'ALTER ROLE "{app}" SET {name} = {SETTINGS[name]};'


@pytest.mark.wide
@pytest.mark.parametrize(
    ("do", "undo", "subject"),
    [
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "REVOKE CREATE ON SCHEMA public FROM PUBLIC", "schema public"),
        (
            f"GRANT CREATE ON SCHEMA public TO {ROLES.auditor}",
            f"REVOKE CREATE ON SCHEMA public FROM {ROLES.auditor}",
            "schema public",
        ),
        (
            f"GRANT CREATE ON SCHEMA pgcrypto TO {ROLES.auditor}",
            f"REVOKE CREATE ON SCHEMA pgcrypto FROM {ROLES.auditor}",
            "schema pgcrypto",
        ),
        (
            "CREATE FUNCTION public.pgp_sym_encrypt(text, text, text) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'",
            "DROP FUNCTION public.pgp_sym_encrypt",
            "pgcrypto",
        ),
        (
            "CREATE FUNCTION pgcrypto.pgp_sym_decrypt(bytea, varchar) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'",
            "DROP FUNCTION pgcrypto.pgp_sym_decrypt(bytea, varchar)",
            "pgcrypto",
        ),
        (
            "CREATE VIEW open AS SELECT pgcrypto.pgp_sym_decrypt(ssn_encrypted, 'key') FROM patient_data",
            "DROP VIEW open",
            "views and indexes",
        ),
        (
            "CREATE INDEX open ON patient_data (pgcrypto.pgp_sym_decrypt(ssn_encrypted, 'key'))",
            "DROP INDEX open",
            "views and indexes",
        ),
        (
            f"CREATE DOMAIN public.text AS pg_catalog.text; ALTER DOMAIN public.text OWNER TO {ROLES.auditor}",
            "DROP DOMAIN public.text",
            "schema public",
        ),
        (
            f'CREATE COLLATION pgcrypto.c FROM "C"; ALTER COLLATION pgcrypto.c OWNER TO {ROLES.auditor}',
            "DROP COLLATION pgcrypto.c",
            "schema pgcrypto",
        ),
        (
            f"GRANT TEMPORARY ON DATABASE postgres TO {ROLES.app}",
            f"REVOKE TEMPORARY ON DATABASE postgres FROM {ROLES.app}",
            "temporary objects",
        ),
        (
            f"ALTER ROLE {ROLES.app} SET search_path = public, pg_catalog",
            f"ALTER ROLE {ROLES.app} RESET search_path",
            "search_path",
        ),
        (f"ALTER ROLE {ROLES.app} SUPERUSER", f"ALTER ROLE {ROLES.app} NOSUPERUSER", "role"),
        (f"ALTER ROLE {ROLES.app} BYPASSRLS", f"ALTER ROLE {ROLES.app} NOBYPASSRLS", "role"),
        (f"ALTER ROLE {ROLES.app} CREATEROLE", f"ALTER ROLE {ROLES.app} NOCREATEROLE", "role"),
        (f"GRANT pg_read_server_files TO {ROLES.app}", f"REVOKE pg_read_server_files FROM {ROLES.app}", "role"),
        (f"GRANT {ROLES.owner} TO {ROLES.app}", f"REVOKE {ROLES.owner} FROM {ROLES.app}", "role"),
    ],
)
def test_each_unsafe_thing_is_a_line(deployment: Deployment, do: str, undo: str, subject: str) -> None:
    """One change, one line, which says what mends it."""
    with changed(deployment, do, undo):
        assert unsafe(deployment) == {subject}
        assert lines_of(deployment)[subject].remedy
    assert unsafe(deployment) == set()


@pytest.mark.parametrize(
    "grants",
    [
        f"GRANT pg_read_server_files TO {ROLES.app}",
        f"GRANT pg_read_server_files TO between; GRANT between TO {ROLES.app}",
        "GRANT pg_read_server_files TO between WITH ADMIN OPTION; SET ROLE between; "
        f"GRANT pg_read_server_files TO {ROLES.app}; RESET ROLE",
    ],
    ids=["itself", "through another role", "by another role"],
)
def test_what_mends_a_membership_mends_it(deployment: Deployment, grants: str) -> None:
    """Through however many roles it goes, and whoever granted it: it is the grant to this one that is taken back."""
    with changed(deployment, f"CREATE ROLE between; {grants}", "DROP OWNED BY between; DROP ROLE between"):
        line = lines_of(deployment)["role"]
        assert "pg_read_server_files" in line.detail
        assert line.remedy is not None
        deployment.admin.execute(line.remedy.encode())
        assert unsafe(deployment) == set()


def test_the_owner_and_the_superuser_are_no_applications(deployment: Deployment) -> None:
    """They work, and check says that they should not."""
    assert unsafe(deployment, ROLES.owner) == {"role"}
    assert "role" in unsafe(deployment, "postgres")


def test_libraries_that_are_not_known_are_a_note(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may see what is preloaded is told of each that could log what it likes; others, that they may not see it."""
    assert lines_of(deployment, "postgres")["preloaded libraries"].verdict is Verdict.OK
    assert "not shown to this role" in lines_of(deployment)["preloaded libraries"].detail
    monkeypatch.setattr("voiceassist_db.checking.KNOWN_LIBRARIES", frozenset())
    assert "auto_explain" in lines_of(deployment, "postgres")["preloaded libraries"].detail


def test_a_client_side_cursor_is_a_line(deployment: Deployment) -> None:
    """It would write keys into the text of statements; the engine refuses the connection altogether."""
    from sqlalchemy import create_engine as plain_engine

    engine = plain_engine(deployment.url(), connect_args={"cursor_factory": psycopg.ClientCursor})
    with engine.connect() as connection:
        found = {each.subject: each.verdict for each in check(connection)}
    engine.dispose()
    assert found["cursors"] is Verdict.UNSAFE


def test_an_old_pgcrypto_is_named(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its CVE, and by the release that mends it."""
    monkeypatch.setattr(
        "voiceassist_db.checking.CVES", (("CVE-0000-0001", Verdict.UNSAFE, dict.fromkeys(range(15, 30), 99), "is bad"),)
    )
    line = lines_of(deployment)["CVE-0000-0001"]
    assert line.verdict is Verdict.UNSAFE
    assert line.remedy.endswith(".99 or newer.")


def run_check(deployment: Deployment, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as the application's role, without core dumps."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(  # noqa: PLW1510  # its exit code is what the tests are about
        [
            sys.executable,
            "-c",
            f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); {COMMAND[2]}",
            *arguments,
        ],
        env=inherited | {"DATABASE_URL": plain(deployment.url()), "VAULT_ADDR": "https://vault:8200"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_is_content_and_exits_with_0(deployment: Deployment) -> None:
    """Every line is ok, or a note."""
    done = run_check(deployment, "check", "--json")
    assert done.returncode == 0, done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["safe"] is True
    assert {each["verdict"] for each in result["checks"]} <= {"ok", "note"}
    assert {"subject", "verdict", "detail", "remedy"} == set(result["checks"][0])


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"VAULT_ADDR": "http://vault.example.org:8200"},
            "unsafe  key store: VAULT_ADDR sends keys to vault.example.org",
        ),
        ({"ENCRYPTION_KEY": "x", "VAULT_ADDR": ""}, "unsafe  key store: ENCRYPTION_KEY holds a key in the environment"),
    ],
)
def test_the_way_of_the_keys_is_a_line(deployment: Deployment, environment: dict[str, str], line: str) -> None:
    """Keys that come without TLS, or from the environment, are unsafe, and the exit code says so."""
    done = run_check(deployment, "check", **environment)
    assert done.returncode == 1
    assert line in done.stdout
    assert "NOT SAFE: 1 of" in done.stdout


def test_an_unsafe_deployment_exits_with_1(deployment: Deployment) -> None:
    """In words and in JSON, the unsafe line has its remedy."""
    name = "log_parameter_max_length"
    with changed(deployment, f"ALTER ROLE {ROLES.app} RESET {name}", f"ALTER ROLE {ROLES.app} SET {name} = 0"):
        spoken, written = run_check(deployment, "check"), run_check(deployment, "check", "--json")
    assert (spoken.returncode, written.returncode) == (1, 1)
    assert f'ALTER ROLE "{ROLES.app}" SET {name} = 0;' in spoken.stdout
    assert json.loads(written.stdout.splitlines()[-1])["safe"] is False


def test_a_core_limit_is_looked_at(deployment: Deployment) -> None:
    """This process's own: a core file would hold the keys."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    try:
        assert lines_of(deployment)["core dumps"].verdict is Verdict.OK
        if before[1] == 0:
            pytest.skip("this machine permits no core dump")
        resource.setrlimit(resource.RLIMIT_CORE, (4096 if before[1] < 0 else min(before[1], 4096), before[1]))
        assert lines_of(deployment)["core dumps"].verdict is Verdict.UNSAFE
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_provision_prints_executes_and_explains_itself(deployment: Deployment) -> None:
    """As a superuser it executes; as anybody else it prints, or says who could."""
    admin = {"DATABASE_URL": plain(deployment.server.url())}
    executed = run_check(deployment, "provision", "--json", **admin)
    assert executed.returncode == 0, executed.stderr
    assert json.loads(executed.stdout)["executed"] is True
    printed = run_check(deployment, "provision", "--print")
    assert printed.returncode == 0
    assert printed.stdout.startswith("BEGIN;\n")
    assert PASSWORD not in printed.stdout
    deployment.admin.execute(sql.SQL(printed.stdout))
    refused = run_check(deployment, "provision")
    assert refused.returncode == 1
    assert "provision --print" in refused.stderr
    assert "ALTER ROLE" not in refused.stderr
