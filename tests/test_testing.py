"""The fixtures for an application's tests, used as docs/testing.md says, by a pytest of the application's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.conftest import plain
from voiceassist_db.errors import KeysNotFoundError, KeyStoreConflictError
from voiceassist_db.keys import KeySet
from voiceassist_db.testing import SERVER, MemoryKeyProvider

ROOT = Path(__file__).parents[1]

TABLES = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
"""

GRANTS = """
from sqlalchemy import DDL, event

roles = "voiceassist_owner, voiceassist_app, voiceassist_rotator, voiceassist_auditor"
event.listen(Base.metadata, "after_create", DDL(f"GRANT SELECT ON visits TO {roles}"))
"""

OWN = """

from clinic.tables import Visit
from sqlalchemy import func, select


def test_the_applications_tables_are_there(voiceassist_database):
    with voiceassist_database.transaction() as tx:
        assert tx.session.scalar(select(func.count()).select_from(Visit)) == 0
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """An application whose tests are the documentation's blocks: the first is its conftest."""
    conftest, *tests = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/testing.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / "__init__.py").touch()
    (tmp_path / "clinic" / "tables.py").write_text(TABLES)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_clinic.py").write_text("\n\n".join([*tests, OWN]))
    return tmp_path


def passed(application: Path, environment: dict[str, str]) -> str:
    """Run an application's tests, and return the last line of what pytest says."""
    options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-o", "pythonpath=."]
    given = {"PATH": os.environ["PATH"], "HOME": str(application)} | environment
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=application,
        env=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()[-1]


def test_the_documentations_tests_pass_on_a_named_server(application: Path, server_url: URL) -> None:
    """The blocks of the documentation are the application's whole conftest and tests."""
    assert passed(application, {SERVER: plain(server_url)}).startswith("5 passed")


@pytest.mark.wide
def test_they_pass_on_a_server_of_their_own(application: Path) -> None:
    """Without any variable the fixtures start a server, as on a developer's machine; migrations can grant to a deployment's roles."""
    with (application / "clinic" / "tables.py").open("a") as tables:
        tables.write(GRANTS)
    assert passed(application, {}).startswith("5 passed")


def test_keys_in_memory_are_kept_as_vault_keeps_them() -> None:
    """Nothing is overwritten that another has changed meanwhile, and a copy goes its own way."""
    provider, keys = MemoryKeyProvider(), KeySet.generate()
    with pytest.raises(KeysNotFoundError):
        provider.fetch()
    provider.create(keys)
    with pytest.raises(KeyStoreConflictError):
        provider.create(KeySet.generate())
    held, other = provider.fetch(), provider.copied()
    new = KeySet.generate()
    provider.replace(held, new)
    with pytest.raises(KeyStoreConflictError):
        provider.replace(held, keys)
    assert provider.fetch().key == new.key
    assert other.fetch().key == keys.key
