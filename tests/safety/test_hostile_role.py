"""A role that may create in a schema of the search path cannot capture a key: calls name their schema, and fit exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import plain
from tests.safety.conftest import PASSWORD, ROLES, Deployment
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.rotation import retire, rotate
from voiceassist_db.verification import verify

pytestmark = pytest.mark.xdist_group("safety")

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
    engine, rotator = create_engine(deployment.url()), create_engine(deployment.url(ROLES.rotator))
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
        owner = create_engine(deployment.url(ROLES.owner))
        retire(owner, database.keys, grace_days=0)
        owner.dispose()
    finally:
        with database.transaction() as tx:
            for n in range(1, 300):
                tx.patients.delete(f"PT-{n}")
        engine.dispose()
        rotator.dispose()


def test_the_traps_work(hostile: psycopg.Connection[tuple[object, ...]], deployment: Deployment) -> None:
    """The guide's own statement, which names no schema, steps into them: the key is captured."""
    with psycopg.connect(plain(deployment.url()), autocommit=True) as app:
        app.execute("SELECT pgp_sym_encrypt('123-45-6789', %s)", ["the key"])
    assert captured(hostile) == [("the key",)]
