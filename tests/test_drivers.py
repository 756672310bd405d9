"""An engine that cannot send keys is refused when it is handed over, with the engine to make instead."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Final

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from voiceassist_db import AsyncDatabase, Database
from voiceassist_db.errors import ConfigurationError, VoiceAssistDBError
from voiceassist_db.testing import MemoryKeyProvider

UNUSED: Final = MemoryKeyProvider()
PASSWORD: Final = "hunter2"


def driver(name: str) -> ModuleType:
    """Return a module in the place of a driver that is not installed: a refused engine never calls it."""
    module: Any = ModuleType(name)
    module.paramstyle, module.__version__ = "pyformat", "2.9.10"
    module.Error = Exception
    module.extras = module.extensions = ModuleType(f"{name}.extras")
    return module  # type: ignore[no-any-return]


def foreign(name: str) -> Engine:
    """Return an engine for another driver, or another database."""
    if name == "sqlite":
        return create_engine("sqlite://")
    return create_engine(f"postgresql+{name}://me:{PASSWORD}@127.0.0.1:1/none", module=driver(name))


@pytest.mark.parametrize("name", ["psycopg2", "pg8000", "sqlite"])
def test_another_driver_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the driver and the engine to make, and shows no password."""
    monkeypatch.setitem(sys.modules, "psycopg2", driver("psycopg2"))
    engine = foreign(name)
    with pytest.raises(ConfigurationError, match="postgresql\\+psycopg") as refused:
        Database(engine, UNUSED)
    assert name in str(refused.value)
    assert PASSWORD not in str(refused.value)
    engine.dispose()


def test_asyncpg_is_refused_at_once() -> None:
    """The usual driver of asyncio cannot send keys either."""
    engine = create_async_engine(f"postgresql+asyncpg://me:{PASSWORD}@127.0.0.1:1/none", module=driver("asyncpg"))
    with pytest.raises(ConfigurationError, match="through asyncpg") as refused:
        AsyncDatabase(engine, UNUSED)
    assert 'create_async_engine("postgresql+psycopg://' in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_the_other_kind_of_engine_is_refused() -> None:
    """Each class names the other one."""
    address = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    given: Any = create_async_engine(address)
    with pytest.raises(ConfigurationError, match=r"use AsyncDatabase\(\)"):
        Database(given, UNUSED)
    plain: Any = create_engine(address)
    with pytest.raises(ConfigurationError, match=r"use Database\(\)"):
        AsyncDatabase(plain, UNUSED)
    nothing: Any = address
    with pytest.raises(VoiceAssistDBError):
        Database(nothing, UNUSED)


def test_psycopg_is_taken_in_both_forms() -> None:
    """Nothing is connected yet."""
    address = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    assert Database(create_engine(address), UNUSED).engine.dialect.driver == "psycopg"
    assert AsyncDatabase(create_async_engine(address), UNUSED).engine.dialect.driver == "psycopg"
