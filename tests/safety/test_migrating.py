"""A role that may create in the search path, or once could, gets nothing done by whoever migrates."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest
from sqlalchemy import URL

from tests.conftest import plain
from tests.safety.conftest import PASSWORD, ROLES, Deployment
from voiceassist_db import create_engine
from voiceassist_db.errors import MigrationError
from voiceassist_db.schema import Migrated, migrate

REVISIONS: Final = "CREATE TABLE public.{table} (version_num varchar(32)); GRANT ALL ON public.{table} TO PUBLIC"
POLICY: Final = (
    "; ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON public.{table} USING (hostile.seen())"
)
VIEW: Final = "CREATE VIEW public.{table} AS SELECT '0005'::varchar AS version_num WHERE hostile.seen(); GRANT ALL ON public.{table} TO PUBLIC"
TRIGGER: Final = "; CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON public.{table} FOR EACH ROW EXECUTE FUNCTION hostile.noted()"
FUNCTIONS: Final = """
    CREATE SEQUENCE hostile.loot; GRANT USAGE ON SCHEMA hostile TO PUBLIC; GRANT ALL ON SEQUENCE hostile.loot TO PUBLIC;
    CREATE FUNCTION hostile.seen() RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('hostile.loot'); RETURN true; END $$;
    CREATE FUNCTION hostile.noted() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('hostile.loot'); RETURN coalesce(NEW, OLD); END $$
"""
OPERATOR: Final = """
    CREATE FUNCTION public.same(name, varchar) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('hostile.loot'); RETURN $1::text OPERATOR(pg_catalog.=) $2::text; END $$;
    CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = varchar, FUNCTION = public.same)
"""
wide = pytest.mark.wide


@dataclass
class Place:
    """A database in whose schema public a hostile role could create objects.

    Attributes:
        url: Its address, as its owner.
        admin: A superuser's connection to it.
        hostile: The hostile role's.
    """

    url: URL
    admin: psycopg.Connection[Any]
    hostile: psycopg.Connection[Any]

    def migrated(self) -> Migrated:
        """Migrate as the owner."""
        engine = create_engine(self.url)
        try:
            return migrate(engine)
        finally:
            engine.dispose()

    def has_run(self) -> bool:
        """Say whether code of the hostile role has run since this was asked last. Not by a table, which would make the database another's."""
        found = self.hostile.execute("SELECT is_called FROM hostile.loot").fetchall()
        self.hostile.execute("SELECT setval('hostile.loot', 1, false)")
        return bool(found[0][0])

    def leave(self, statements: str) -> None:
        """Leave objects in the schema public, in which nobody may create any more."""
        self.hostile.execute(statements.encode())
        self.admin.execute("REVOKE CREATE ON SCHEMA public FROM hostile")


@pytest.fixture
def place(deployment: Deployment) -> Iterator[Place]:
    """A database without this package's tables."""
    name = f"migrating_{secrets.token_hex(4)}"
    deployment.admin.execute(f"CREATE ROLE hostile LOGIN PASSWORD '{PASSWORD}'".encode())
    deployment.admin.execute(f"CREATE DATABASE {name} OWNER {ROLES.owner}".encode())
    url = deployment.url(ROLES.owner).set(database=name)
    with (
        psycopg.connect(plain(deployment.server.url().set(database=name)), autocommit=True) as admin,
        psycopg.connect(plain(url.set(username="hostile")), autocommit=True) as hostile,
    ):
        admin.execute("CREATE SCHEMA hostile AUTHORIZATION hostile; GRANT CREATE ON SCHEMA public TO hostile")
        hostile.execute(FUNCTIONS)
        yield Place(url, admin, hostile)
    deployment.admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    deployment.admin.execute("DROP ROLE hostile")


def test_nothing_is_migrated_where_another_role_may_create(place: Place) -> None:
    """SQLAlchemy and Alembic name no schema of their operators, so the role would have its own called with the owner's rights."""
    place.hostile.execute(OPERATOR)
    with pytest.raises(MigrationError, match=r"hostile may create in it(.|\n)*REVOKE CREATE") as refused:
        place.migrated()
    assert "hostile owns in it what statements could find by name: function same" in str(refused.value)
    assert not place.has_run()
    place.hostile.execute("DROP OPERATOR public.= (name, varchar); DROP FUNCTION public.same")
    place.admin.execute("REVOKE CREATE ON SCHEMA public FROM hostile")
    assert place.migrated().steps


@wide
@pytest.mark.parametrize("trap", [VIEW, REVISIONS + POLICY, REVISIONS + TRIGGER], ids=["view", "policy", "trigger"])
def test_a_version_table_that_was_left_is_neither_read_nor_written(trap: str, place: Place) -> None:
    """A view, a policy and a trigger run as whoever touches them."""
    place.leave(trap.format(table="voiceassist_version"))
    with pytest.raises(MigrationError, match="voiceassist_version is not the table of this package, but hostile's"):
        place.migrated()
    assert not place.has_run()


@wide
@pytest.mark.parametrize("trap", [VIEW, REVISIONS + POLICY, REVISIONS + TRIGGER], ids=["view", "policy", "trigger"])
def test_a_history_of_somebody_else_is_not_taken_over(trap: str, place: Place) -> None:
    """Its table is not read if that could run code, and its rows are not deleted."""
    place.leave(trap.format(table="alembic_version"))
    if "VIEW" not in trap:
        place.hostile.execute("INSERT INTO public.alembic_version VALUES ('0005')")
        place.has_run()  # its own trigger
    assert place.migrated().steps
    place.admin.execute("DROP TABLE public.voiceassist_version")
    assert place.migrated().steps == ()  # by its tables the database is at 0005, as it would be if that row were ours
    assert not place.has_run()


@wide
def test_a_registry_of_somebody_else_is_not_taken_over(place: Place) -> None:
    """Tables with the names of our constraints are ours only if they belong to the owner, or to a role that is trusted as it is."""
    place.leave("SELECT")
    place.migrated()
    place.admin.execute("DROP TABLE public.voiceassist_version")
    place.admin.execute("ALTER TABLE public.index_keys OWNER TO hostile")
    with pytest.raises(MigrationError, match="which is not this package's registry"):
        place.migrated()
