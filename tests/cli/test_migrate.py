"""`voiceassist-db migrate`, as somebody runs it who has installed the package and no checkout."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, create_engine, inspect

from tests.cli.conftest import Run
from tests.conftest import plain


def tables(url: URL) -> list[str]:
    """Return the names of the tables in a database."""
    engine = create_engine(url)
    names = inspect(engine).get_table_names()
    engine.dispose()
    return names


def test_migrate_needs_no_file_of_a_checkout(run_process: Run, empty_url: URL, tmp_path: Path) -> None:
    """In any directory it tells what it would do, does it, and finds nothing left to do."""
    env = {"DATABASE_URL": plain(empty_url), "PATH": "/usr/bin:/bin"}
    planned = run_process("migrate", "--dry-run", env=env, cwd=tmp_path)
    assert planned.code == 0, planned.stderr
    assert planned.stdout.splitlines()[-1].startswith("would migrate from nothing to ")
    assert tables(empty_url) == []
    done = run_process("migrate", "--json", env=env, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert (done.json["before"], done.json["executed"]) == ([], True)
    assert len(done.json["steps"]) == len(planned.stdout.splitlines()) - 1
    assert {"patient_data", "encryption_keys"} <= set(tables(empty_url))
    again = run_process("migrate", env=env, cwd=tmp_path)
    assert (again.code, again.stderr) == (0, "")
    assert again.stdout.startswith(f"nothing to do: the database is at {done.json['after'][0]}")
