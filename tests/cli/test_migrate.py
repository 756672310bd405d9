"""`voiceassist-db migrate`, as somebody runs it who has installed the package and no checkout."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, create_engine, inspect

from tests.cli.conftest import Run
from tests.conftest import VaultServer, leading_to, plain


def tables(url: URL) -> list[str]:
    """Return the names of the tables in a database."""
    engine = create_engine(url)
    names = inspect(engine).get_table_names()
    engine.dispose()
    return names


def test_migrate_needs_no_file_of_a_checkout(
    run_process: Run, run: Run, empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any directory it tells what it would do, does it, and finds nothing left to do."""
    env = {"DATABASE_URL": plain(empty_url), "PATH": "/usr/bin:/bin"}
    monkeypatch.chdir(tmp_path)
    planned = run("migrate", "--dry-run", env=env)
    assert planned.code == 0, planned.stderr
    assert planned.stdout.splitlines()[-1].startswith("would migrate from nothing to ")
    assert tables(empty_url) == []
    done = run_process("migrate", "--json", env=env, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert (done.json["before"], done.json["executed"]) == ([], True)
    assert len(done.json["steps"]) == len(planned.stdout.splitlines()) - 1
    assert {"patient_data", "encryption_keys"} <= set(tables(empty_url))
    again = run("migrate", env=env)
    assert (again.code, again.stderr) == (0, "")
    assert again.stdout.startswith(f"nothing to do: the database is at {done.json['after'][0]}")


@pytest.mark.wide
def test_the_sql_is_printed_for_somebody_else(run: Run, empty_url: URL) -> None:
    """What it prints can be given to psql as it is, and nothing is left to do."""
    env = {"DATABASE_URL": plain(empty_url)}
    printed = run("migrate", "--sql", "--registry-only", env=env)
    assert (printed.code, printed.stderr) == (0, "")
    assert tables(empty_url) == []
    with psycopg.connect(plain(empty_url), autocommit=True) as connection:
        connection.execute(printed.stdout.encode())
    assert "nothing to do" in run("migrate", "--registry-only", env=env).stdout


@pytest.mark.parametrize(
    "arguments", [["--sql", "--json"], ["--sql", "--dry-run"], ["--schema", "x" * 64], ["--schema", ""]], ids=" ".join
)
@pytest.mark.wide
def test_options_that_do_not_fit_are_wrong_usage(arguments: list[str], run: Run, empty_url: URL) -> None:
    """They are refused before anything is done."""
    assert run("migrate", *arguments, env={"DATABASE_URL": plain(empty_url)}).code == 2


def test_a_row_that_may_be_of_another_history_is_named(run: Run, database_url: URL) -> None:
    """The message says how to remove it, and that it was kept."""
    with psycopg.connect(plain(database_url), autocommit=True) as connection:
        connection.execute("DROP TABLE voiceassist_version")
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES ('0005')")
        connection.execute("CREATE TABLE theirs (id integer)")
        done = run("migrate", env={"DATABASE_URL": plain(database_url)})
        assert done.stdout.startswith(
            "nothing to do: the database is at voiceassist_0006\nalembic_version still has the row 0005"
        )
        connection.execute(done.stdout.rpartition("remove it: ")[2].encode())
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (0,)


@pytest.mark.wide
@pytest.mark.parametrize("path", ["vault, public", "public, vault"])
def test_a_life_in_another_schema(path: str, run: Run, empty_url: URL, vault: VaultServer, vault_path: str) -> None:
    """Whatever the application calls first in its path, every command works on the tables in the other schema."""
    env = leading_to(empty_url, vault, vault_path)
    done = run("migrate", "--schema", "vault", env=env)
    assert (done.code, done.stderr) == (0, "")
    assert "the tables of this database are in the schema vault" in run("status", env=env).error
    name = empty_url.database
    with psycopg.connect(plain(empty_url), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET search_path = {path}")
    for arguments in (
        ["migrate"],
        ["init-keys"],
        ["rotate"],
        ["retire", "--grace-days", "0"],
        ["rotate", "--index-key"],
        ["verify"],
        ["status"],
    ):
        done = run(*arguments, env=env)
        assert (done.code, done.stderr) == (0, ""), arguments
    with psycopg.connect(plain(empty_url), autocommit=True) as connection:
        where = connection.execute("SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information)'")
        assert where.fetchall() == [("vault",)]
