"""No key goes over a connection where it could be seen: each single unsafe setting, and each unsafe way, is refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from tests.safety.conftest import ROLES, Deployment, use
from voiceassist_db import AsyncDatabase, Database, create_async_engine, create_engine
from voiceassist_db.errors import UnsafeConnectionError
from voiceassist_db.safety import SETTINGS
from voiceassist_db.status import read_status

FLIPS = [
    ("log_parameter_max_length", "-1"),
    ("log_parameter_max_length", "1"),
    ("log_parameter_max_length_on_error", "-1"),
    ("log_parameter_max_length_on_error", "64"),
    ("plan_cache_mode", "auto"),
    ("plan_cache_mode", "force_custom_plan"),
    ("max_parallel_workers_per_gather", "1"),
    ("max_parallel_workers_per_gather", "2"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_min_duration", "60000"),
    ("auto_explain.log_parameter_max_length", "-1"),
    ("auto_explain.log_parameter_max_length", "16"),
    ("pgaudit.log_parameter", "on"),
]


def test_a_provisioned_role_is_safe_on_the_most_talkative_server(
    deployment: Deployment, engine_of: Callable[..., Engine]
) -> None:
    """What the server does for others does not matter: the role's own settings hold."""
    use(engine_of(), deployment)


@pytest.mark.parametrize(("name", "value"), FLIPS)
def test_each_unsafe_setting_alone_is_refused(
    deployment: Deployment, engine_of: Callable[..., Engine], name: str, value: str
) -> None:
    """The error names the setting and the statement that mends it, and that statement does."""
    if not deployment.has(name):
        pytest.skip(f"this server has no {name}")
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET {name} = {value}")
    with pytest.raises(UnsafeConnectionError) as refused:
        use(engine_of(), deployment)
    lines = [line for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"  {name}: is {value}")
    statement = lines[0].partition(". ")[2]
    assert statement == f'ALTER ROLE "{ROLES.app}" SET {name} = {SETTINGS[name]};'
    deployment.admin.execute(statement)
    use(engine_of(), deployment)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_the_role_does_not_have_is_refused(
    deployment: Deployment, engine_of: Callable[..., Engine], name: str
) -> None:
    """Then the server's own value counts, which is unsafe here."""
    if not deployment.has(name):
        pytest.skip(f"this server has no {name}")
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} RESET {name}")
    try:
        with pytest.raises(UnsafeConnectionError, match=name):
            use(engine_of(), deployment)
    finally:
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET {name} = {SETTINGS[name]}")


def test_every_setting_that_this_server_has_is_flipped_above() -> None:
    """A rule without a flip would be a rule that nobody tested."""
    assert set(SETTINGS) == {name for name, _ in FLIPS}


def test_a_safe_value_that_a_reload_could_change_is_refused(
    deployment: Deployment, engine_of: Callable[..., Engine]
) -> None:
    """A value of the configuration file, or the default, holds only until somebody reloads it; connections live longer."""
    name = "auto_explain.log_parameter_max_length" if deployment.has("auto_explain.log_parameter_max_length") else None
    if name is None:
        pytest.skip("auto_explain logs parameters from PostgreSQL 16 on")
    deployment.admin.execute(f"ALTER SYSTEM SET {name} = 0")
    deployment.admin.execute("SELECT pg_reload_conf()")
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} RESET {name}")
    try:
        with pytest.raises(UnsafeConnectionError, match=f"{name}: is 0, but by the configuration file"):
            use(engine_of(), deployment)
    finally:
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET {name} = 0")
        deployment.admin.execute(f"ALTER SYSTEM RESET {name}")
        deployment.admin.execute("SELECT pg_reload_conf()")


def test_a_safe_value_that_the_session_set_is_refused(deployment: Deployment, engine_of: Callable[..., Engine]) -> None:
    """A SET belongs to a session, and behind a pooler the next transaction may be another one's."""
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} RESET plan_cache_mode")
    engine = engine_of()
    event.listen(
        engine, "connect", lambda connection, _: connection.execute("SET plan_cache_mode = force_generic_plan")
    )
    try:
        with pytest.raises(UnsafeConnectionError, match="plan_cache_mode: is force_generic_plan, but by a SET"):
            use(engine, deployment)
    finally:
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET plan_cache_mode = force_generic_plan")


@pytest.mark.parametrize(
    ("path", "before"),
    [
        ("public, pg_catalog", "public"),
        ("absent, pg_catalog, public", "absent"),
        ('"$user", "PG_Catalog", pg_catalog, public', "$user, PG_Catalog"),
        ("closed, public, pg_catalog", "closed, public"),
    ],
)
def test_a_path_that_names_pg_catalog_late_is_refused(
    deployment: Deployment, engine_of: Callable[..., Engine], path: str, before: str
) -> None:
    """Also behind a schema that is not there yet, or that the role may not use yet: either can change under the connection."""
    deployment.admin.execute("CREATE SCHEMA closed")
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET search_path = {path}")
    try:
        with pytest.raises(UnsafeConnectionError) as refused:
            use(engine_of(), deployment)
    finally:
        deployment.admin.execute("DROP SCHEMA closed")
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} RESET search_path")
    (line,) = [each.strip() for each in str(refused.value).splitlines() if each.startswith("  ")]
    assert line.startswith(f"search_path: finds names in {before} before pg_catalog")
    assert line.endswith(f'ALTER ROLE "{ROLES.app}" RESET search_path;')


@pytest.mark.parametrize(
    "path", ["public", "pg_catalog, public", "absent, public", '"$user", public', "PG_CATALOG, public"]
)
def test_a_path_that_finds_the_systems_own_first_is_safe(
    deployment: Deployment, engine_of: Callable[..., Engine], path: str
) -> None:
    """A path that does not name pg_catalog has it first."""
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET search_path = {path}")
    try:
        use(engine_of(), deployment)
    finally:
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} RESET search_path")


def test_a_connection_that_comes_after_a_change_is_looked_at_again(
    deployment: Deployment, engine_of: Callable[..., Engine]
) -> None:
    """Reconnects are new connections: what was safe this morning is asked again."""
    engine = engine_of()
    use(engine, deployment)
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET plan_cache_mode = auto")
    deployment.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [ROLES.app])
    try:
        with pytest.raises(UnsafeConnectionError, match="plan_cache_mode"):
            use(engine, deployment)
    finally:
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET plan_cache_mode = force_generic_plan")


def test_statements_without_keys_run_on_any_connection(deployment: Deployment) -> None:
    """Migrations and status send no key, and so need no settings: the auditor has none."""
    engine = create_engine(deployment.url(ROLES.auditor))
    with engine.connect() as connection:
        status = read_status(connection)
        versions = [each.version for each in status.keys]  # other tests may have rotated the deployment that they share
        assert versions == list(range(1, len(versions) + 1)) != []
        with pytest.raises(DBAPIError, match="permission denied"):
            connection.execute(text("SELECT patient_id FROM patient_data"))
    with pytest.raises(UnsafeConnectionError, match="log_parameter_max_length"):
        use(engine, deployment)
    engine.dispose()


async def test_the_async_engine_refuses_as_well(deployment: Deployment) -> None:
    """The same check stands before the same statements."""
    engine = create_async_engine(deployment.url(ROLES.auditor))
    database = AsyncDatabase(engine, deployment.provider)
    with pytest.raises(UnsafeConnectionError, match="plan_cache_mode"):
        async with database.transaction() as tx:
            await tx.run(lambda tx: tx.patients.page())
    await database.close()


async def test_the_async_engine_of_a_provisioned_role_works(deployment: Deployment) -> None:
    """The check itself runs on the event loop."""
    database = AsyncDatabase(create_async_engine(deployment.url()), deployment.provider)
    async with database.transaction() as tx:
        assert await tx.run(lambda tx: tx.patients.page()) == []
    await database.close()


def test_an_engine_that_was_made_elsewhere_is_checked_too(deployment: Deployment) -> None:
    """Connections that were in its pool before are looked at when they are next used."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(deployment.url(ROLES.auditor))
    with engine.connect():
        pass
    with pytest.raises(UnsafeConnectionError):
        use(engine, deployment)
    engine.dispose()


def test_the_override_goes_on_and_says_what_it_risks(
    deployment: Deployment, engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """For development: every start lists what is unsafe."""
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET plan_cache_mode = auto")
    try:
        with caplog.at_level(logging.WARNING):
            engine = engine_of(allow_unsafe=True)
            use(engine, deployment)
            with engine.connect(), engine.connect() as connection:
                assert Database(engine, deployment.provider).using(connection).patients.page() == []
    finally:
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET plan_cache_mode = force_generic_plan")
    assert "can be seen" in caplog.text
    assert caplog.text.count("plan_cache_mode: is auto") == 1  # of an engine, and not of each of its connections


def test_no_value_is_sent_before_the_refusal(deployment: Deployment, engine_of: Callable[..., Engine]) -> None:
    """The patient's value would be in the same statement as the key: the server sees neither."""
    seen = deployment.server.log.stat().st_size
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET log_parameter_max_length = -1")
    deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET log_statement = 'all'")
    try:
        with pytest.raises(UnsafeConnectionError):
            use(engine_of(), deployment)
    finally:
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} SET log_parameter_max_length = 0")
        deployment.admin.execute(f"ALTER ROLE {ROLES.app} RESET log_statement")
    logged = Path(deployment.server.log).read_text(encoding="utf-8")[seen:]
    assert "encryption_keys" in logged
    assert "INSERT" not in logged.replace("ALTER ROLE", "")
