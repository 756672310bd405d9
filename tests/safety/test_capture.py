"""No key and no value is captured by an object of any kind, wherever it lies, however the connection goes, before and after its check.

The control is the guide's own statement, which names no schema: in the same places the same objects capture it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from sqlalchemy import Engine, event

from tests.conftest import VaultServer, plain
from tests.safety.conftest import PASSWORD, ROLES, Deployment, deployed, use
from tests.safety.pooler import BINARY, Pooler
from tests.safety.traps import MARK, TRAPS, every_trap, traps
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.errors import UnsafeConnectionError
from voiceassist_db.models import Base
from voiceassist_db.models.declaration import declared_tables
from voiceassist_db.rotation import retire, rotate
from voiceassist_db.verification import verify

pytestmark = pytest.mark.wide

needs_pgbouncer = pytest.mark.skipif(BINARY is None and "CI" not in os.environ, reason="pgbouncer is not installed")

PATHS = {
    "public": None,
    "ahead": "hostile, public",
    "late": "public, pg_catalog",
}
"""Search path of the roles by place; where it is None their own is left as it is."""

SCHEMAS = {"public": "public", "ahead": "hostile", "late": "public", "pg_temp": "pg_temp"}
WAYS = ["direct", pytest.param("pooled", marks=needs_pgbouncer)]

GUIDE = {
    "domain": "pgcrypto.pgp_sym_encrypt(CAST(%s AS text), CAST(%s AS text))",
    "enum": "pgcrypto.pgp_sym_encrypt(CAST(%s AS text)::pg_catalog.text, CAST(%s AS text)::pg_catalog.text)",
    "composite": "pgcrypto.pgp_sym_encrypt(CAST(%s AS text)::pg_catalog.text, CAST(%s AS text)::pg_catalog.text)",
    "range": "pgcrypto.pgp_sym_encrypt(CAST(%s AS text)::pg_catalog.text, CAST(%s AS text)::pg_catalog.text)",
    "function": "pgp_sym_encrypt(%s, %s)",
    "operator": "pgcrypto.pgp_sym_encrypt(CAST(%s AS varchar) || CAST('' AS varchar), CAST(%s AS varchar) || CAST('' AS varchar))",
    "aggregate": "pgcrypto.pgp_sym_encrypt(max(CAST(%s AS varchar)), max(CAST(%s AS varchar)))",
    "cast": "pgp_sym_encrypt(CAST(%s AS text), CAST(%s AS text))",
    "table": "pgcrypto.pgp_sym_encrypt(%s, %s)",
}
"""The value that the guide's statement inserts, in the spelling that each kind can capture."""

TYPES = ("domain", "enum", "composite", "range")
CONTROLS = [
    *((kind, place) for kind in TYPES for place in ("late", "pg_temp")),
    *((kind, place) for kind in ("function", "operator", "aggregate", "cast") for place in PATHS),
    *(("table", place) for place in ("ahead", "pg_temp")),
]
"""Where PostgreSQL finds each kind: types before its own only where pg_catalog comes later or in pg_temp; functions, operators and
aggregates never in pg_temp; a table hides another one from a schema before its own."""


@pytest.fixture(scope="module")
def places(vault: VaultServer) -> Iterator[Deployment]:
    """A deployment of its own, whose keys are rotated, with a hostile role, a schema of a trusted owner for it, TEMP for all, and the guide's table."""
    with deployed(vault) as deployment:
        admin, everyone = deployment.admin, f"{ROLES.app}, {ROLES.rotator}"
        admin.execute(f"CREATE ROLE hostile LOGIN PASSWORD '{PASSWORD}'; CREATE SCHEMA hostile")
        admin.execute(f"GRANT USAGE ON SCHEMA hostile TO PUBLIC; GRANT TEMPORARY ON DATABASE postgres TO {everyone}")
        admin.execute("CREATE TABLE public.guide (patient_id text, ssn bytea); GRANT ALL ON public.guide TO PUBLIC")
        admin.execute(f"GRANT SELECT ON patient_data, clinical_notes TO hostile; GRANT hostile TO {ROLES.owner}")
        yield deployment
        admin.execute(f"REVOKE hostile FROM {ROLES.owner}; REVOKE TEMPORARY ON DATABASE postgres FROM {everyone}")
        admin.execute("DROP OWNED BY hostile CASCADE; DROP SCHEMA hostile CASCADE; DROP ROLE hostile; DROP TABLE guide")


@contextmanager
def set_in(deployment: Deployment, place: str, statements: str) -> Iterator[None]:
    """Leave traps of the hostile role, which may create no more, in a schema of the path; pg_temp is for sessions to fill."""
    admin = deployment.admin
    if place == "pg_temp":
        yield
        return
    admin.execute(f"GRANT CREATE ON SCHEMA {SCHEMAS[place]} TO hostile")
    with psycopg.connect(plain(deployment.url("hostile")), autocommit=True) as hostile:
        hostile.execute(statements.encode())
        hostile.execute(b"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA hostile TO PUBLIC")
    admin.execute(f"REVOKE CREATE ON SCHEMA {SCHEMAS[place]} FROM hostile")
    try:
        yield
    finally:
        admin.execute("SET ROLE hostile")
        admin.execute("DROP OWNED BY hostile CASCADE")
        admin.execute("RESET ROLE")
        admin.execute("GRANT SELECT ON patient_data, clinical_notes TO hostile")


@contextmanager
def path_of(deployment: Deployment, place: str) -> Iterator[None]:
    """Give the roles a search path, as each role may do by itself."""
    path = PATHS.get(place)
    if path is None:
        yield
        return
    for role in (ROLES.app, ROLES.rotator):
        with psycopg.connect(plain(deployment.url(role)), autocommit=True) as own:
            own.execute(f"ALTER ROLE {role} SET search_path = {path}".encode())
    try:
        yield
    finally:
        for role in (ROLES.app, ROLES.rotator):
            deployment.admin.execute(f"ALTER ROLE {role} RESET search_path")


@contextmanager
def reached(
    deployment: Deployment, way: str, role: str = ROLES.app, *, temporary: str = ""
) -> Iterator[Callable[..., Engine]]:
    """Give a function that makes engines of a role; their sessions have these temporary objects before they are checked."""
    made: list[Engine] = []
    with ExitStack() as stack:
        url = deployment.url(role)
        if way == "pooled":
            sessions = 3
            url = stack.enter_context(Pooler(url, sessions=sessions)).url
            clients = [
                stack.enter_context(psycopg.connect(plain(url), prepare_threshold=None)) for _ in range(sessions)
            ]
            for client in clients:  # in transactions at once, so that each has a session of its own
                client.execute("SELECT 1")
            for client in clients:
                client.execute((temporary or "SELECT 1").encode())
                client.commit()

        def make(**options: bool) -> Engine:
            engine = create_engine(url, **options)
            made.append(engine)
            if way == "direct" and temporary:
                event.listen(engine, "connect", lambda connection, _: execute(connection, temporary))
            return engine

        try:
            yield make
        finally:
            for engine in made:
                engine.dispose()


def execute(connection: psycopg.Connection[object], statements: str) -> None:
    """Execute statements on the driver's connection, as an injection into the application would."""
    connection.execute(statements.encode())
    connection.commit()


class Watch:
    """What the server's log says from now on."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._begin = deployment.server.log.stat().st_size
        self.secrets: set[str] = set()

    def keys(self) -> None:
        """Look for the keys that are live now, too."""
        contexts = [field.context for table in declared_tables(Base.metadata) for field in table.fields.values()]
        for key in self._deployment.provider.fetch().versions().values():
            self.secrets |= {each.expose().decode() for each in (key, *(key.derive(context) for context in contexts))}

    def log(self) -> str:
        """Return the log."""
        with self._deployment.server.log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    def captured(self) -> list[str]:
        """Return which secrets were seen."""
        log = self.log()
        return [each for each in self.secrets if each in log]


@pytest.mark.parametrize(("kind", "place"), CONTROLS)
def test_the_guide_s_statement_is_captured(places: Deployment, kind: str, place: str) -> None:
    """The control: each trap works where it lies, on the value and on the key. A table captures what is not encrypted."""
    key, value, patient = secrets.token_hex(16), secrets.token_hex(8), secrets.token_hex(8)
    watch = Watch(places)
    schema = SCHEMAS[place]
    with (
        set_in(places, place, traps(kind, schema)),
        path_of(places, place),
        psycopg.connect(plain(places.url()), autocommit=True) as app,
    ):
        if place == "pg_temp":
            app.execute(traps(kind, schema).encode())
        statement = f"INSERT INTO guide SELECT %s, {GUIDE[kind]}".encode()
        with contextlib.suppress(psycopg.Error):
            app.execute(statement, [patient, value, key])
    watch.secrets = {patient} if kind == "table" else {value, key}
    seen = set(watch.captured())
    assert seen == watch.secrets or (kind in TYPES[1:] and seen)  # its error ends the statement at one of the two


PLACES_OF = [
    *((kind, place) for kind in TRAPS for place in PATHS if kind not in {"table", "view"}),
    *((kind, "ahead") for kind in ("table", "view")),
    *((kind, "pg_temp") for kind in TRAPS),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "place"), PLACES_OF)
def test_each_kind_alone_is_refused(places: Deployment, kind: str, place: str, way: str) -> None:
    """Left behind by a role that may create nothing any more, or temporary: the check finds each by itself."""
    watch = Watch(places)
    watch.keys()
    watch.secrets.add("123456789")
    statements = traps(kind, SCHEMAS[place])
    with (
        set_in(places, place, statements),
        path_of(places, place),
        reached(places, way, temporary=statements if place == "pg_temp" else "") as engine_of,
        pytest.raises(UnsafeConnectionError) as refused,
    ):
        use(engine_of(), places)
    found = [line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")]
    if place == "late":
        assert any(line.startswith("search_path: finds names in public before pg_catalog") for line in found)
    if place == "pg_temp":
        assert {line.partition(" ")[0] for line in found} == {"pg_temp:", *(["cast"] if kind == "cast" else [])}
    else:
        assert any("hostile owns" in line for line in found)
    assert watch.captured() == []


@pytest.mark.parametrize("way", WAYS)
def test_a_late_pg_catalog_alone_is_refused(places: Deployment, way: str) -> None:
    """Each role may set its own search path; the error names the statement that takes it back."""
    with (
        path_of(places, "late"),
        reached(places, way) as engine_of,
        pytest.raises(UnsafeConnectionError, match=f'ALTER ROLE "{ROLES.app}" RESET search_path;'),
    ):
        use(engine_of(), places)
    with reached(places, way) as engine_of:
        use(engine_of(), places)


def work(app: Engine, rotator: Engine, owner: Engine, deployment: Deployment, watch: Watch) -> None:
    """Do everything that sends a key or a value."""
    database = Database(app, deployment.provider)
    watch.keys()
    ssns = [f"{secrets.randbelow(600) + 100}{secrets.randbelow(10**6):06d}" for _ in range(20)]
    names = [secrets.token_hex(8) for _ in ssns]
    watch.secrets |= {*ssns, *names}
    patients = [
        Patient(patient_id=f"PT-{n}", ssn=ssn, name=name) for n, (ssn, name) in enumerate(zip(ssns, names, strict=True))
    ]
    with database.transaction() as tx:
        tx.patients.add(patients[0])
        tx.patients.add_many(patients[1:])
    with database.transaction() as tx:
        assert tx.patients.get("PT-0").ssn == ssns[0]
        assert len(tx.patients.get_many([each.patient_id for each in patients])) == len(patients)
        assert "PT-3" in [each.patient_id for each in tx.patients.find_by_name(names[3])]
        assert len(tx.patients.page()) == len(patients)
        tx.patients.update("PT-1", name=names[0])
    assert rotate(rotator, database.keys).done
    watch.keys()
    with database.transaction() as tx:
        assert tx.patients.get("PT-1").name == names[0]
    assert [each.failed for each in verify(app, database.keys)] == [0, 0]
    retire(owner, database.keys, grace_days=0)
    with database.transaction() as tx:
        for each in patients:
            tx.patients.delete(each.patient_id)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", SCHEMAS)
def test_traps_before_the_check_capture_nothing(places: Deployment, place: str, way: str) -> None:
    """With the override, which sends keys all the same: every statement names what it calls, and no trap is stepped into."""
    watch = Watch(places)
    statements = every_trap(SCHEMAS[place])
    temporary = statements if place == "pg_temp" else ""
    with (
        set_in(places, place, statements),
        path_of(places, place),
        reached(places, way, temporary=temporary) as app_of,
        reached(places, way, ROLES.rotator, temporary=temporary) as rotator_of,
        reached(places, "direct", ROLES.owner) as owner_of,
    ):
        app, rotator, owner = (each(allow_unsafe=True) for each in (app_of, rotator_of, owner_of))
        work(app, rotator, owner, places, watch)
    assert watch.captured() == []
    assert MARK not in watch.log()


@pytest.mark.parametrize("place", SCHEMAS)
def test_traps_after_the_check_capture_nothing(places: Deployment, place: str) -> None:
    """On a connection that was found safe, one injected batch makes the traps and leads the search path to them."""
    watch = Watch(places)
    schema = SCHEMAS[place]
    path = PATHS.get(place)

    def inject(connection: psycopg.Connection[object], record: object, _: object) -> None:
        info = record.info  # type: ignore[attr-defined]  # a connection record's
        if "trapped" not in info:
            info["trapped"] = True
            execute(connection, every_trap(schema) if place == "pg_temp" else f"SET search_path = {path or 'public'}")

    with (
        reached(places, "direct") as app_of,
        reached(places, "direct", ROLES.rotator) as rotator_of,
        reached(places, "direct", ROLES.owner) as owner_of,
    ):
        app, rotator, owner = app_of(), rotator_of(), owner_of()
        with app.connect(), rotator.connect(), owner.connect():
            pass
        for engine in (app, rotator):
            event.listen(engine, "checkout", inject)
        work(app, rotator, owner, places, watch)
    assert watch.captured() == []
    assert MARK not in watch.log()


RELATIONS = {
    "table": traps("table", "pg_temp"),
    "view": f"""
        CREATE VIEW pg_temp.patient_data AS SELECT * FROM public.patient_data;
        CREATE FUNCTION pg_temp.seen() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE LOG '{MARK} %', CAST(NEW AS pg_catalog.text); RETURN NEW; END $$;
        CREATE TRIGGER seen INSTEAD OF INSERT OR UPDATE ON pg_temp.patient_data
        FOR EACH ROW EXECUTE FUNCTION pg_temp.seen()""",
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("relation", RELATIONS)
def test_a_table_or_view_takes_rows_but_no_secret(places: Deployment, relation: str, when: str) -> None:
    """Our own tables are found by the search path. One that hides them sees ciphertexts and plain columns, such as patient_id."""
    watch = Watch(places)
    watch.keys()
    name, patient = secrets.token_hex(8), secrets.token_hex(8)
    watch.secrets |= {name, "123456789"}
    statements = RELATIONS[relation]

    def inject(connection: psycopg.Connection[object], record: object, _: object) -> None:
        info = record.info  # type: ignore[attr-defined]  # a connection record's
        if "trapped" not in info:
            info["trapped"] = True
            execute(connection, statements)

    with reached(places, "direct", temporary=statements if when == "before" else "") as engine_of:
        engine = engine_of(allow_unsafe=when == "before")
        if when == "after":
            with engine.connect():
                pass
            event.listen(engine, "checkout", inject)
        database = Database(engine, places.provider)
        with database.transaction() as tx:
            tx.patients.add(Patient(patient_id=patient, ssn="123456789", name=name))
            tx.patients.add_many([Patient(patient_id=f"{patient}-2", ssn="123456789", name=name)])
            found = {each.patient_id for each in (*tx.patients.find_by_name(name), *tx.patients.page())}
            assert found == ({patient, f"{patient}-2"} if relation == "table" else set())
            if relation == "table":
                tx.patients.update(patient, ssn="123456789", name=name)
                assert tx.patients.get(patient).name == name
    assert watch.captured() == []
    assert f"{MARK} (" in watch.log()
    assert patient in watch.log()


@needs_pgbouncer
@pytest.mark.parametrize("kind", TRAPS)
def test_a_trap_of_another_client_is_refused_in_the_next_transaction(places: Deployment, kind: str) -> None:
    """Behind a pooler: an engine that was found safe is asked again, and goes on once the objects are gone."""
    watch = Watch(places)
    watch.keys()
    with Pooler(places.url()) as pooler:
        engine = create_engine(pooler.url)
        use(engine, places)
        with psycopg.connect(plain(pooler.url), autocommit=True, prepare_threshold=None) as other:
            other.execute(traps(kind, "pg_temp").encode())
            with pytest.raises(UnsafeConnectionError, match="pg_temp: holds .*DISCARD TEMP"):
                use(engine, places)
            other.execute("DISCARD TEMP")
        use(engine, places)
        engine.dispose()
    assert watch.captured() == []


def test_a_temporary_table_of_the_application_s_own_is_no_obstacle_afterwards(places: Deployment) -> None:
    """On a direct connection it may be made when the connection was checked; dropped on commit, behind a pooler as well."""
    with reached(places, "direct") as engine_of:
        engine = engine_of()
        use(engine, places)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TEMPORARY TABLE import (id int) ON COMMIT DROP")
            database = Database(engine, places.provider)
            assert database.using(connection).patients.page() == []
        use(engine, places)
