"""What the Alembic plugin refuses, so that no migration leaves values which nobody can open, or deletes them by chance."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.util import CommandError
from sqlalchemy import URL, MetaData, text
from sqlalchemy.orm import Mapped, mapped_column

from tests.conftest import plain
from tests.test_alembic_plugin import CIPHERTEXT, Environment, after, base, before
from tests.test_alembic_plugin import environment as environment  # noqa: PLC0414  # a fixture
from voiceassist_db.models import EncryptedInPlace, Kind, encrypted_column

wide = pytest.mark.wide


def visits(*bases: type, key: str = "id", **columns: Any) -> MetaData:
    """Return the application's table as it shall be: with these columns, and this primary key."""
    their = base()
    body: dict[str, Any] = {
        "__tablename__": "visits",
        "__annotations__": {key: Mapped[UUID]},
        "note": sa.Column(sa.Text),
    }
    type("Visit", (*bases, their), {**body, key: mapped_column(primary_key=True), **columns})
    return their.metadata


def fill(environment: Environment) -> None:
    """Add the encrypted columns, and a value."""
    environment.run(environment.written(after())[0])
    insert = text("INSERT INTO visits (id, reason_encrypted, key_version) VALUES (gen_random_uuid(), :value, 1)")
    environment.connection.execute(insert, {"value": CIPHERTEXT})
    environment.connection.commit()


@pytest.mark.parametrize(
    ("bases", "column", "problem"),
    [
        (
            (),
            lambda: encrypted_column(Kind.TEXT),
            "no column key_version, without which nobody knows the key of reason",
        ),
        (
            (EncryptedInPlace,),
            lambda: encrypted_column(Kind.TEXT, context="visits.cause"),
            r"bound to the context visits\.reason, and the model declares visits\.cause: .*context='visits\.reason'",
        ),
        ((EncryptedInPlace,), lambda: sa.Column(sa.LargeBinary), "the model declares nothing"),
    ],
    ids=["no version", "another context", "no declaration"],
)
def test_no_migration_makes_values_unreadable(
    bases: tuple[type, ...], column: Any, problem: str, environment: Environment
) -> None:
    """Without a version nobody knows their key, and in another context they are another column's."""
    environment.run(environment.written(after())[0])
    with pytest.raises(CommandError, match=problem):
        environment.written(visits(*bases, reason_encrypted=column()))
    if bases:
        assert "as json" in environment.written(visits(*bases, reason_encrypted=encrypted_column(Kind.JSON)))[0]


@wide
@pytest.mark.parametrize("change", ["a primary key", "a domain"])
def test_what_values_need_is_dropped_only_when_somebody_says_so(change: str, environment: Environment) -> None:
    """They are bound to the primary key; and a column may be of a type that the application made of bytea."""
    fill(environment)
    metadata = before()
    if change == "a primary key":
        metadata = visits(EncryptedInPlace, key="number", reason_encrypted=encrypted_column(Kind.TEXT))
    else:
        environment.connection.execute(text("CREATE DOMAIN ciphertext AS bytea"))
        environment.connection.execute(text("ALTER TABLE visits ALTER reason_encrypted TYPE ciphertext"))
        environment.connection.commit()
    dropped = {"a primary key": "id", "a domain": "reason_encrypted"}[change]
    up, down = environment.written(metadata)
    assert f"op.drop_encrypted_column('visits', '{dropped}')" in up
    assert f"op.add_column('visits', sa.Column('{dropped}'" in down
    up = up.replace("nullable=False", "nullable=True")
    with pytest.raises(CommandError, match="visits holds encrypted values"):
        environment.run(up)


@wide
def test_the_argument_has_no_value(environment: Environment) -> None:
    """Whoever writes ``-x drop-encrypted-data=no`` means it."""
    fill(environment)
    config = Config(cmd_opts=SimpleNamespace(x=["drop-encrypted-data=no"]))  # type: ignore[arg-type]
    with EnvironmentContext(config, None) as context:  # type: ignore[arg-type]
        context.configure(connection=environment.connection)
        operations: Any = Operations(context.get_context())
        with pytest.raises(CommandError, match="run it with alembic -x drop-encrypted-data"):
            operations.drop_encrypted_column("visits", "reason_encrypted")


def test_a_batch_does_not_change_the_order(environment: Environment) -> None:
    """With ``render_as_batch``, Alembic would execute its own operations after all of ours, which need them."""
    metadata = after()
    made = produce_migrations(environment.context(metadata), metadata)
    assert made.upgrade_ops is not None
    assert made.downgrade_ops is not None
    first = environment.seen()
    environment.run(render_python_code(made.upgrade_ops, render_as_batch=True))
    assert environment.differences(metadata) == []
    environment.run(render_python_code(made.downgrade_ops, render_as_batch=True))
    assert environment.seen() == first


@wide
@pytest.mark.parametrize("name", ["visits", 'it\'s $check$ "one"'])
def test_printed_sql_sees_rows_that_a_policy_hides(name: str, environment: Environment, database_url: URL) -> None:
    """Whoever runs it may be subject to the policies of the tables that it drops."""
    fill(environment)
    quoted = '"{}"'.format(name.replace('"', '""'))
    if name != "visits":
        environment.connection.execute(text(f"ALTER TABLE visits RENAME TO {quoted}"))
    for statement in (
        f"ALTER TABLE {quoted} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY none ON {quoted} USING (false)",
    ):
        environment.connection.execute(text(statement))
    environment.connection.commit()
    out = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": out})
    operations: Any = Operations(context)
    operations.drop_encrypted_column(name, "reason_encrypted")
    with psycopg.connect(plain(database_url), autocommit=True) as administrator:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            administrator.execute(out.getvalue().encode())
        administrator.execute(f"ALTER TABLE {quoted} NO FORCE ROW LEVEL SECURITY".encode())
        with pytest.raises(psycopg.errors.RaiseException, match="-x drop-encrypted-data"):
            administrator.execute(out.getvalue().encode())
