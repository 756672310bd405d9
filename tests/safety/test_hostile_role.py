"""A role that may create in a schema of the search path cannot capture a key.

No key is sent while it may, nor while something of its is left there; and where one is sent all the same, by the override, calls name
their schema and fit exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import Connection

from tests.conftest import plain
from tests.safety.conftest import PASSWORD, ROLES, Deployment, use
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.checking import Verdict, check
from voiceassist_db.errors import UnsafeConnectionError
from voiceassist_db.provisioning import provision
from voiceassist_db.rotation import retire, rotate
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify


def provisioned(connection: Connection) -> object:
    """Provision."""
    return provision(connection, ROLES)


def checked(connection: Connection) -> object:
    """Check."""
    return check(connection)


def looked_at(connection: Connection) -> object:
    """Read the status."""
    return read_status(connection)


TYPES = ("text", "varchar", "bytea", "unknown_text")
TRAP = """
    CREATE FUNCTION {name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.captured VALUES ({seen}); RETURN {real}; END $$;
    GRANT EXECUTE ON FUNCTION {name}({arguments}) TO PUBLIC
"""


@pytest.fixture
def hostile(deployment: Deployment) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A hostile role's connection, which has set traps of every signature in a schema before pgcrypto's and in public."""
    admin = deployment.admin
    admin.execute(f"CREATE ROLE hostile LOGIN PASSWORD '{PASSWORD}'; CREATE SCHEMA hostile AUTHORIZATION hostile")
    admin.execute("GRANT CREATE ON SCHEMA public TO hostile; GRANT USAGE ON SCHEMA hostile, pgcrypto TO PUBLIC")
    for role in (ROLES.app, ROLES.rotator):
        admin.execute(f"ALTER ROLE {role} SET search_path = hostile, public, pgcrypto")
    with psycopg.connect(plain(deployment.url("hostile")), autocommit=True) as connection:
        connection.execute("CREATE DOMAIN hostile.unknown_text AS text")
        connection.execute("CREATE TABLE public.captured (seen text); GRANT ALL ON public.captured TO PUBLIC")
        for schema, name in itertools.product(("hostile", "public"), ("pgp_sym_encrypt", "pgp_sym_decrypt")):
            for kinds in (*itertools.product(TYPES, repeat=2), *itertools.product(TYPES, repeat=3)):
                arguments = ", ".join(kind.replace("unknown_text", "hostile.unknown_text") for kind in kinds)
                connection.execute(
                    TRAP.format(
                        name=f"{schema}.{name}",
                        arguments=arguments,
                        returns="bytea" if name == "pgp_sym_encrypt" else "text",
                        seen="$2::text",
                        real="NULL",
                    )
                )
        for name, arguments, returns, real in (
            ("coalesce_text", "text, text", "text", "$1"),
            ("starts_with", "text, text", "boolean", "true"),
            ("textcat", "text, text", "text", "$1"),
            ("substring", "bytea, int, int", "bytea", "$1"),
            ("replace", "text, text, text", "text", "$1"),
            ("convert_to", "text, text", "bytea", "NULL"),
            ("unnest", "text[]", "text", "NULL"),
            ("get_byte", "bytea, int", "int", "1"),
            ("octet_length", "bytea", "int", "1"),
            ("to_char", "date, text", "text", "NULL"),
        ):
            trap = TRAP.format(name=f"hostile.{name}", arguments=arguments, returns=returns, seen="$1::text", real=real)
            connection.execute(trap)
        connection.execute(
            "CREATE OPERATOR hostile.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.textcat); "
            "CREATE FUNCTION hostile.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ "
            "BEGIN INSERT INTO public.captured VALUES ($1); RETURN true; END $$; "
            "CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.same)"
        )
        yield connection
    for role in (ROLES.app, ROLES.rotator):
        admin.execute(f"ALTER ROLE {role} RESET search_path")
    admin.execute("DROP OWNED BY hostile CASCADE; DROP ROLE hostile; REVOKE USAGE ON SCHEMA pgcrypto FROM PUBLIC")


def captured(connection: psycopg.Connection[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Return what the traps have seen."""
    return connection.execute("SELECT seen FROM public.captured").fetchall()


def test_traps_on_the_search_path_capture_nothing(
    hostile: psycopg.Connection[tuple[object, ...]], deployment: Deployment
) -> None:
    """Write, read, search, change, rotate and verify: values are right, and no trap was stepped into."""
    engine = create_engine(deployment.url(), allow_unsafe=True)
    rotator = create_engine(deployment.url(ROLES.rotator), allow_unsafe=True)
    database = Database(engine, deployment.provider)
    try:
        with database.transaction() as tx:
            tx.patients.add(Patient(patient_id="PT-1", ssn="123456789", name="Zoe"))
            tx.patients.add_many(Patient(patient_id=f"PT-{n}", ssn=f"12345{n:04d}") for n in range(2, 300))
            tx.patients.update("PT-1", name="Zoë")
        assert rotate(rotator, database.keys).done
        with database.transaction() as tx:
            assert tx.patients.get("PT-1").name == "Zoë"
            assert [each.patient_id for each in tx.patients.find_by_ssn("123450007")] == ["PT-7"]
            assert len(tx.patients.get_many([f"PT-{n}" for n in range(1, 300)])) == 299
        assert [each.failed for each in verify(engine, database.keys)] == [0, 0]
        assert captured(hostile) == []
        owner = create_engine(deployment.url(ROLES.owner), allow_unsafe=True)
        retire(owner, database.keys, grace_days=0)
        owner.dispose()
    finally:
        with database.transaction() as tx:
            for n in range(1, 300):
                tx.patients.delete(f"PT-{n}")
        engine.dispose()
        rotator.dispose()


def test_no_key_is_sent_where_traps_could_be(
    hostile: psycopg.Connection[tuple[object, ...]], deployment: Deployment
) -> None:
    """The error names the schemas, who may create in them, and what mends it; traps that are left count as well."""
    engine = create_engine(deployment.url())
    with pytest.raises(UnsafeConnectionError) as refused:
        use(engine, deployment)
    lines = str(refused.value)
    assert "schema hostile: hostile owns it. ALTER SCHEMA hostile OWNER TO CURRENT_USER;" in lines
    assert "schema public: hostile may create in it" in lines
    assert "REVOKE CREATE ON SCHEMA public FROM hostile;" in lines
    deployment.admin.execute("REVOKE CREATE ON SCHEMA public FROM hostile")
    for role in (ROLES.app, ROLES.rotator):
        deployment.admin.execute(f"ALTER ROLE {role} RESET search_path")
    engine.dispose()
    with pytest.raises(UnsafeConnectionError, match="schema public: hostile owns in it .*function "):
        use(engine, deployment)
    engine.dispose()


def test_a_table_that_hides_another_is_refused(deployment: Deployment) -> None:
    """Its triggers would run as whoever writes to it by its name."""
    admin = deployment.admin
    admin.execute(f"CREATE ROLE hostile LOGIN PASSWORD '{PASSWORD}'; CREATE SCHEMA other")
    admin.execute("CREATE TABLE other.patient_data (id int); ALTER TABLE other.patient_data OWNER TO hostile")
    admin.execute(f"GRANT USAGE ON SCHEMA other TO PUBLIC; ALTER ROLE {ROLES.app} SET search_path = other, public")
    engine = create_engine(deployment.url())
    try:
        with pytest.raises(UnsafeConnectionError, match="table other.patient_data: hostile owns it"):
            use(engine, deployment)
    finally:
        engine.dispose()
        admin.execute(f"ALTER ROLE {ROLES.app} RESET search_path; DROP SCHEMA other CASCADE; DROP ROLE hostile")


def test_a_table_of_somebody_unknown_is_not_rotated(deployment: Deployment) -> None:
    """Anybody can declare a table as encrypted; its trigger could run as the rotator. It is left alone, stops nothing, and check says so."""
    admin = deployment.admin
    admin.execute(f"CREATE ROLE hostile LOGIN PASSWORD '{PASSWORD}'; CREATE SCHEMA hostile AUTHORIZATION hostile")
    with psycopg.connect(plain(deployment.url("hostile")), autocommit=True) as connection:
        connection.execute("CREATE TABLE hostile.t (id int PRIMARY KEY, a_encrypted bytea, key_version int NOT NULL)")
        connection.execute("COMMENT ON COLUMN hostile.t.a_encrypted IS 'encrypted hostile.t.a as text'")
        connection.execute(
            "INSERT INTO hostile.t VALUES (1, NULL, 1); GRANT ALL ON hostile.t TO PUBLIC; GRANT USAGE ON SCHEMA hostile TO PUBLIC"
        )
    rotator = create_engine(deployment.url(ROLES.rotator))
    try:
        report = rotate(rotator, Database(rotator, deployment.provider).keys)
        with rotator.connect() as looking:
            lines = {each.subject: each for each in check(looking)}
        assert report.done
        assert admin.execute("SELECT id, key_version FROM hostile.t").fetchall() == [(1, 1)]
        assert lines["hostile.t"].verdict is Verdict.NOTE
        assert "belongs to hostile" in lines["hostile.t"].detail
    finally:
        rotator.dispose()
        admin.execute("DROP OWNED BY hostile CASCADE; DROP ROLE hostile")


@pytest.mark.parametrize("work", [provisioned, checked, looked_at])
def test_an_operator_on_the_path_does_not_run_as_the_superuser(
    deployment: Deployment, work: Callable[[Connection], object]
) -> None:
    """Tools look names up in the system's own schema: a better fitting operator of somebody else is not theirs to call."""
    admin = deployment.admin
    admin.execute(f"CREATE ROLE hostile LOGIN PASSWORD '{PASSWORD}'; GRANT CREATE ON SCHEMA public TO hostile")
    with psycopg.connect(plain(deployment.url("hostile")), autocommit=True) as connection:
        for left, right in (
            ("oid", "int"),
            ("oid", "regtype"),
            ("name", "text"),
            ("text", "name"),
            ("oid", "regclass"),
        ):
            connection.execute(
                f"CREATE FUNCTION public.trap({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS $$ "
                "BEGIN ALTER ROLE hostile SUPERUSER; RETURN true; END $$; "
                f"CREATE OPERATOR public.= (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.trap)"
            )
    engine = create_engine(deployment.server.url())
    try:
        with engine.begin() as superuser:
            work(superuser)
        became = admin.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'hostile'").fetchone()
        assert became == (False,)
    finally:
        engine.dispose()
        admin.execute("ALTER ROLE hostile NOSUPERUSER; DROP OWNED BY hostile CASCADE; DROP ROLE hostile")


def test_the_traps_work(hostile: psycopg.Connection[tuple[object, ...]], deployment: Deployment) -> None:
    """The guide's own statement, which names no schema, steps into them: the key is captured."""
    with psycopg.connect(plain(deployment.url()), autocommit=True) as app:
        app.execute("SELECT pgp_sym_encrypt('123-45-6789', %s)", ["the key"])
    assert captured(hostile) == [("the key",)]


def test_a_trigger_whose_function_another_role_owns_is_refused(deployment: Deployment) -> None:
    """The function runs as the application, in its session: it could put a statement of its own in the place of a prepared one."""
    admin = deployment.admin
    admin.execute(f"CREATE ROLE setter LOGIN PASSWORD '{PASSWORD}'; CREATE SCHEMA setter AUTHORIZATION setter")
    admin.execute("GRANT TRIGGER ON patient_data TO setter")
    try:
        with psycopg.connect(plain(deployment.url("setter")), autocommit=True) as setter:
            setter.execute(
                "CREATE FUNCTION setter.seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
                "CREATE TRIGGER seen BEFORE UPDATE ON public.patient_data FOR EACH ROW EXECUTE FUNCTION setter.seen()"
            )
        engine = create_engine(deployment.url())
        problem = "trigger seen of table public.patient_data: setter owns its function"
        with pytest.raises(UnsafeConnectionError, match=problem):
            use(engine, deployment)
        with engine.connect() as connection:
            assert any(
                problem in f"{each.subject}: {each.detail}"
                for each in check(connection)
                if each.verdict is Verdict.UNSAFE
            )
        engine.dispose()
        admin.execute("ALTER FUNCTION setter.seen() OWNER TO CURRENT_USER")
        engine = create_engine(deployment.url())
        use(engine, deployment)
        engine.dispose()
        admin.execute("DROP FUNCTION setter.seen() CASCADE")
    finally:
        admin.execute("DROP OWNED BY setter CASCADE; DROP ROLE setter")


def test_an_engine_can_go_without_prepared_statements(deployment: Deployment) -> None:
    """Then nobody can replace one."""
    engine = create_engine(deployment.url(), connect_args={"prepare_threshold": None})
    with engine.connect() as connection:
        for _ in range(10):
            Database(engine, deployment.provider).using(connection).patients.page()
        assert connection.exec_driver_sql("SELECT name FROM pg_catalog.pg_prepared_statements").all() == []
    engine.dispose()
