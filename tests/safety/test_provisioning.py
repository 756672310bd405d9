"""Roles are made with what each needs and no more; the statements may be repeated, and printed for somebody else to run."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from tests.conftest import plain
from tests.safety.conftest import PASSWORD, ROLES, Deployment, use
from voiceassist_db import ClinicalNote, Database, Patient, create_engine
from voiceassist_db.checking import CVES, Line, Verdict, check
from voiceassist_db.errors import ConfigurationError, DatabaseError, ProvisioningError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.provisioning import Roles, leftovers, provision, statements, without_password
from voiceassist_db.rotation import retire, rotate, rotate_index_key
from voiceassist_db.schema import migrate
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify

PRIVILEGES = """
    SELECT 'table', c.relname, c.relowner::regrole::text, c.relacl::text FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'S')
    UNION ALL SELECT 'column', attrelid::regclass || '.' || attname, '', attacl::text FROM pg_attribute WHERE attacl IS NOT NULL
    UNION ALL SELECT 'schema', nspname, nspowner::regrole::text, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL SELECT 'settings', setrole::regrole::text, '', setconfig::text FROM pg_db_role_setting
    ORDER BY 1, 2
"""


@pytest.fixture
def empty(deployment: Deployment) -> Iterator[URL]:
    """The superuser's address of an empty database on the deployment's server."""
    name = f"provisioned_{secrets.token_hex(4)}"
    deployment.admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    yield deployment.server.url(name)
    deployment.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def engine_at(url: URL, role: str | None = None) -> Iterator[Engine]:
    """An engine of a role, or of the superuser."""
    engine = create_engine(url.set(username=role, password=PASSWORD) if role else url)
    try:
        yield engine
    finally:
        engine.dispose()


def refused(connection: Connection, statement: str) -> bool:
    """Say whether the connection's role may not do something; it is undone where it may."""
    savepoint = connection.begin_nested()
    try:
        connection.execute(text(statement))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":
            raise
        return True
    finally:
        savepoint.rollback()
    return False


def provisioned(url: URL, roles: Roles = ROLES) -> list[str]:
    """Provision a database and return the statements."""
    with engine_at(url) as engine, engine.begin() as connection:
        return provision(connection, roles)


def test_a_deployment_from_nothing(
    empty: URL, deployment: Deployment, new_provider: Callable[..., VaultKeyProvider]
) -> None:
    """Provision, migrate as the owner, provision again: then each role does its work, and none another one's."""
    provisioned(empty)
    provider = new_provider()
    with engine_at(empty, ROLES.owner) as owner:
        migrate(owner)
        with owner.begin() as connection:
            initialise_keys(provider, connection)
    provisioned(empty)
    with (
        engine_at(empty, ROLES.app) as app,
        engine_at(empty, ROLES.rotator) as rotator,
        engine_at(empty, ROLES.owner) as owner,
        engine_at(empty, ROLES.auditor) as auditor,
    ):
        database = Database(app, provider)
        patient = Patient(patient_id="PT-001", ssn="123456789", mrn="MRN-1", name="Zoe")
        with database.transaction() as tx:
            tx.patients.add(patient)
            tx.clinical_notes.add(ClinicalNote(patient=patient.id, note="stable"))
            tx.patients.update("PT-001", name="Zoë")
            assert tx.patients.find_by_mrn("mrn-1") is not None
        assert rotate(rotator, database.keys).done
        assert rotate_index_key(rotator, database.keys).done
        assert [each.failed for each in verify(app, database.keys)] == [0, 0]
        with pytest.raises(DatabaseError, match="may not do that"):
            retire(rotator, database.keys, grace_days=0)
        retire(owner, database.keys, grace_days=0)
        with database.transaction() as tx:
            assert tx.patients.get("PT-001").name == "Zoë"
            (note,) = tx.clinical_notes.page()
            tx.clinical_notes.delete(note.patient, note.id)
            tx.patients.delete("PT-001")
        with auditor.connect() as connection:
            assert [each.state for each in read_status(connection).keys] == ["retired", "current"]


def test_each_role_has_what_it_needs_and_no_more(deployment: Deployment) -> None:
    """What a stolen login could do is what its role may do."""
    with engine_at(deployment.url(), ROLES.app) as engine, engine.connect() as app:
        assert refused(app, "CREATE TABLE mine (id int)")
        assert refused(app, "UPDATE encryption_keys SET state = 'retired'")
        assert refused(app, "INSERT INTO index_keys (check_value, state) VALUES ('x', 'current')")
        assert refused(app, "TRUNCATE patient_data CASCADE")
        assert refused(app, "ALTER TABLE patient_data DROP CONSTRAINT patient_data_ssn_encrypted_format")
        assert refused(app, "SELECT * FROM key_rotations")
        assert refused(app, "CREATE FUNCTION pgcrypto.f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        assert not refused(app, "DELETE FROM patient_data")
    with engine_at(deployment.url(), ROLES.rotator) as engine, engine.connect() as rotator:
        assert refused(rotator, "DELETE FROM patient_data")
        assert refused(rotator, f"INSERT INTO patient_data (id, patient_id, key_version) VALUES ('{uuid4()}', 'x', 1)")
        assert refused(rotator, "DELETE FROM encryption_keys")
        assert refused(rotator, "CREATE TABLE mine (id int)")
        assert not refused(rotator, "UPDATE patient_data SET key_version = key_version")
    with engine_at(deployment.url(), ROLES.auditor) as engine, engine.connect() as auditor:
        assert refused(auditor, "SELECT patient_id FROM patient_data")
        assert refused(auditor, "SELECT ssn_index FROM patient_data")
        assert refused(auditor, "SELECT pgcrypto.pgp_sym_decrypt('x', 'y')")
        assert refused(auditor, "UPDATE patient_data SET key_version = 1")
        assert not refused(auditor, "SELECT id, key_version, octet_length(ssn_encrypted), created_at FROM patient_data")
        assert not refused(auditor, "SELECT * FROM key_rotations, key_rotation_failures, encryption_keys")


def test_it_may_be_repeated(empty: URL) -> None:
    """The second time nothing changes, whatever was there."""
    with engine_at(empty) as superuser:
        migrate(superuser)
    provisioned(empty)
    with psycopg.connect(plain(empty)) as admin:
        first = admin.execute(PRIVILEGES).fetchall()
    again = provisioned(empty)
    with psycopg.connect(plain(empty)) as admin:
        assert admin.execute(PRIVILEGES).fetchall() == first
    assert not [each for each in again if each.startswith(("CREATE", "ALTER TABLE"))]


def test_a_grant_too_many_is_taken_back(empty: URL) -> None:
    """Whoever was given more by hand is brought back to what the role needs."""
    with engine_at(empty) as superuser:
        migrate(superuser)
    with psycopg.connect(plain(empty), autocommit=True) as admin:
        admin.execute(f"GRANT ALL ON patient_data, encryption_keys TO {ROLES.app}, {ROLES.auditor}, PUBLIC")
    provisioned(empty)
    with engine_at(empty, ROLES.auditor) as engine, engine.connect() as auditor:
        assert refused(auditor, "SELECT patient_id FROM patient_data")
    with engine_at(empty, ROLES.app) as engine, engine.connect() as app:
        assert refused(app, "DELETE FROM encryption_keys")


def test_a_search_path_that_puts_pg_catalog_late_is_reset(empty: URL, deployment: Deployment) -> None:
    """A role may set it for itself, for all databases or for one; a path that is safe is left as it is."""
    app, rotator, database = ROLES.app, ROLES.rotator, empty.database
    provisioned(empty)
    deployment.admin.execute(f"ALTER ROLE {app} SET search_path = public, pg_catalog")
    deployment.admin.execute(f'ALTER ROLE {app} IN DATABASE {database} SET search_path = "$user", PUBLIC, "pg_catalog"')
    deployment.admin.execute(f"ALTER ROLE {rotator} SET search_path = pg_catalog, public")
    try:
        reset = [each for each in provisioned(empty) if "search_path" in each]
        assert reset == [
            f'ALTER ROLE "{app}" IN DATABASE "{database}" RESET search_path',
            f'ALTER ROLE "{app}" RESET search_path',
        ]
        assert not [each for each in provisioned(empty) if "search_path" in each]
    finally:
        for role in (app, rotator):
            deployment.admin.execute(f"ALTER ROLE {role} RESET search_path")


def test_what_others_left_is_listed(empty: URL, deployment: Deployment) -> None:
    """In each schema that a role's statements look in, of each kind; it is for a person to drop, so it stays."""
    provisioned(empty)
    deployment.admin.execute("CREATE ROLE hostile")
    try:
        with psycopg.connect(plain(empty), autocommit=True) as admin:
            admin.execute("CREATE SCHEMA extra; GRANT USAGE, CREATE ON SCHEMA public, pgcrypto, extra TO hostile")
            admin.execute(f"ALTER ROLE {ROLES.app} IN DATABASE {empty.database} SET search_path = extra, public")
            admin.execute("SET ROLE hostile; CREATE DOMAIN public.text AS pg_catalog.text")
            admin.execute("CREATE FUNCTION extra.f() RETURNS int LANGUAGE sql RETURN 1")
            admin.execute("CREATE TYPE extra.boxed AS (a int)")
            admin.execute("CREATE FUNCTION extra.box(int) RETURNS extra.boxed LANGUAGE sql RETURN ROW($1)::extra.boxed")
            admin.execute("CREATE CAST (int AS extra.boxed) WITH FUNCTION extra.box AS IMPLICIT; RESET ROLE")
            admin.execute("REVOKE CREATE ON SCHEMA public, pgcrypto, extra FROM hostile")
        with engine_at(empty) as superuser, superuser.connect() as connection:
            found = {each.subject: each.problem for each in leftovers(connection, ROLES)}
        assert set(found) == {"schema public", "schema extra", "cast from integer to boxed"}
        assert "type public.text" in found["schema public"]
        assert all(name in found["schema extra"] for name in ("f()", "box(integer)", "boxed"))
        provisioned(empty)
        with engine_at(empty) as superuser, superuser.connect() as connection:
            assert {each.subject for each in leftovers(connection, ROLES)} == set(found)
    finally:
        with psycopg.connect(plain(empty), autocommit=True) as admin:
            admin.execute("DROP OWNED BY hostile CASCADE; DROP ROLE hostile")


def test_tables_of_a_team_with_partitions_and_sequences(empty: URL) -> None:
    """What the catalogue declares as encrypted is provisioned, wherever it is: partitions, sequences, another schema."""
    with psycopg.connect(plain(empty), autocommit=True) as admin:
        admin.execute("CREATE SCHEMA clinic")
        admin.execute(
            "CREATE TABLE clinic.visits (id serial, day date, reason_encrypted bytea, key_version int NOT NULL, "
            "PRIMARY KEY (id, day)) PARTITION BY RANGE (day)"
        )
        admin.execute(
            "CREATE TABLE clinic.visits_2026 PARTITION OF clinic.visits FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"
        )
        admin.execute(
            "CREATE TABLE clinic.rooms (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, plan_encrypted bytea, key_version int NOT NULL)"
        )
        admin.execute("COMMENT ON COLUMN clinic.rooms.plan_encrypted IS 'encrypted clinic.rooms.plan as text'")
        admin.execute("COMMENT ON COLUMN clinic.visits.reason_encrypted IS 'encrypted clinic.visits.reason as text'")
        admin.execute(
            "COMMENT ON COLUMN clinic.visits_2026.reason_encrypted IS 'encrypted clinic.visits.reason as text'"
        )
    provisioned(empty)
    with engine_at(empty, ROLES.app) as engine, engine.connect() as app:
        assert not refused(app, "INSERT INTO clinic.visits (day, key_version) VALUES ('2026-05-05', 1)")
        for table in ("visits", "rooms"):  # a serial key and an identity, which the repository asks for by itself
            assert not refused(app, f"SELECT nextval(pg_get_serial_sequence('clinic.{table}', 'id'))")
    with engine_at(empty, ROLES.rotator) as engine, engine.connect() as rotator:
        assert not refused(rotator, "UPDATE clinic.visits_2026 SET key_version = 1")
        assert refused(rotator, "DELETE FROM clinic.visits_2026")


def test_whoever_may_not_provision_gets_the_statements(empty: URL, deployment: Deployment) -> None:
    """On a managed server: any role prints them, and an administrator runs them."""
    roles = Roles(**{each: f"r{secrets.token_hex(4)}" for each in ("owner", "app", "rotator", "auditor")})
    role = f"r{secrets.token_hex(4)}"
    deployment.admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    with engine_at(empty, role) as engine:
        with pytest.raises(DatabaseError) as denied, engine.begin() as connection:
            provision(connection, roles)
        assert denied.value.sqlstate == "42501"
        with engine.begin() as connection:
            printed = statements(connection, roles)
    with psycopg.connect(plain(empty), autocommit=True) as admin:
        admin.execute("; ".join(printed))
    with engine_at(empty) as superuser:
        migrate(superuser)
        with superuser.begin() as connection:
            provision(connection, roles)
    deployment.admin.execute(f"ALTER ROLE {roles.app} PASSWORD '{PASSWORD}'")
    with engine_at(empty, roles.app) as engine, engine.connect() as app:
        assert not refused(app, "DELETE FROM patient_data")
    with psycopg.connect(plain(empty), autocommit=True) as admin:
        admin.execute(f"DROP OWNED BY {', '.join(roles.names())}")
    deployment.admin.execute(f"DROP OWNED BY {', '.join(roles.names())}")
    deployment.admin.execute(f"DROP ROLE {', '.join((*roles.names(), role))}")


def test_a_superuser_is_no_role_of_a_deployment(deployment: Deployment) -> None:
    """Nothing could be kept from it."""
    with (
        engine_at(deployment.server.url()) as superuser,
        superuser.connect() as connection,
        pytest.raises(ProvisioningError, match="postgres is a superuser"),
    ):
        statements(connection, Roles(app="postgres"))


def test_four_names_are_four_roles() -> None:
    """One login for two duties would have the rights of both."""
    with pytest.raises(ConfigurationError, match="four different"):
        Roles(app="one", rotator="one")


def test_a_role_with_an_odd_name_is_quoted(empty: URL, deployment: Deployment) -> None:
    """Names are identifiers, whatever they hold: a quote, a colon, a percent sign."""
    odd = f'o"d:d %s {secrets.token_hex(3)}'
    roles = Roles(owner=f"{odd} owner", app=f"{odd} app", rotator=f"{odd} rotator", auditor=f"{odd} auditor")
    with engine_at(empty) as superuser, superuser.connect() as connection:
        provision(connection, roles)
        found = connection.execute(
            text("SELECT count(*) FROM pg_roles WHERE rolname = ANY(:names)"), {"names": list(roles.names())}
        )
        assert found.scalar_one() == 4
        assert without_password(connection, roles) == list(roles.names())
        connection.rollback()


def test_only_roles_without_a_password_are_named(deployment: Deployment) -> None:
    """`dev` has set them all; a role that may not see that learns that it should look."""
    with engine_at(deployment.server.url()) as superuser, superuser.connect() as connection:
        assert without_password(connection, ROLES) == []
    with engine_at(deployment.url(), ROLES.app) as engine, engine.connect() as connection:
        assert without_password(connection, ROLES) == list(ROLES.names())


def test_the_application_role_is_safe_to_use(deployment: Deployment) -> None:
    """The settings came with the role: the engine hands it keys."""
    with engine_at(deployment.url(), ROLES.app) as engine:
        use(engine, deployment)


def test_names_of_any_characters(empty: URL, deployment: Deployment) -> None:
    """The printed SQL and the remedies of `check` name everything so that it can be seen, and do what they say."""
    evil = "\x1b[31m\nx\x7f\u202e\\ \"q\" 'a' U&"
    roles = Roles(owner=f"o{evil}", app=f"a{evil}", rotator=f"r{evil}", auditor=f"u{evil}")
    table = f"t{evil}"
    with psycopg.connect(plain(empty), autocommit=True) as admin:
        admin.execute("CREATE SCHEMA pgcrypto; CREATE EXTENSION pgcrypto SCHEMA pgcrypto")
        create = "CREATE TABLE {} (id int PRIMARY KEY, a_encrypted bytea, key_version int NOT NULL)"
        comment = "COMMENT ON COLUMN {}.a_encrypted IS 'encrypted t.a as text'"
        for statement in (create, comment):
            admin.execute(sql.SQL(statement).format(sql.Identifier(table)))
        try:
            with engine_at(empty) as engine, engine.connect() as connection:
                printed = statements(connection, roles)
            for statement in printed:
                assert statement.isprintable(), statement
                admin.execute(statement.encode())
            owner = admin.execute(
                "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = %s", [table]
            ).fetchone()
            assert owner == (roles.owner,)
            found = admin.execute("SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", [list(roles.names())])
            assert found.fetchone() == (len(roles.names()),)
            provisioned(empty, roles)
            app = sql.Identifier(roles.app)
            admin.execute(sql.SQL("ALTER ROLE {} RESET plan_cache_mode").format(app))
            admin.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(app))
            admin.execute(sql.SQL("ALTER ROLE {} CREATEROLE PASSWORD {}").format(app, sql.Literal(PASSWORD)))
            remedies = [each.remedy for each in unsafe_lines(empty, roles.app)]
            assert len(remedies) == 4  # the setting, the right, the attribute, and the CHECK that the table lacks
            for remedy in remedies:
                assert remedy.isprintable(), remedy
                admin.execute(remedy.encode())
            assert unsafe_lines(empty, roles.app) == []
        finally:
            for name in roles.names():
                drop = sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name))
                with suppress(psycopg.errors.UndefinedObject):
                    admin.execute(drop)


def unsafe_lines(url: URL, role: str) -> list[Line]:
    """Return what a role's check finds unsafe, but for this process's core dumps and the age of the server."""
    with engine_at(url, role) as engine, engine.connect() as connection:
        known = {"core dumps", *(each[0] for each in CVES)}
        return [each for each in check(connection) if each.verdict is Verdict.UNSAFE and each.subject not in known]
