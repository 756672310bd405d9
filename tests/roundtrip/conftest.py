"""A trial's database for both ways of use, and the keys as the key store itself gives them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine

from tests.conftest import VaultServer, plain
from tests.roundtrip.life import dump, restore
from tests.roundtrip.oracle import DIRECT, Secret
from tests.roundtrip.trial import Trial
from voiceassist_db import AsyncDatabase, Database, create_async_engine, create_engine
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import Scheme
from voiceassist_db.providers.vault import VaultKeyProvider


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """An event loop."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture
def new_asynchronous(
    new_provider: Callable[..., VaultKeyProvider], runner: asyncio.Runner
) -> Iterator[Callable[[URL], AsyncDatabase]]:
    """A function that opens a database for the event loop; all are closed at the end."""
    opened: list[AsyncDatabase] = []

    def make(url: URL) -> AsyncDatabase:
        opened.append(AsyncDatabase(create_async_engine(url), new_provider()))
        return opened[-1]

    yield make
    for each in opened:
        runner.run(each.close())


@pytest.fixture
def new_trial(
    engine: Engine,
    new_provider: Callable[..., VaultKeyProvider],
    new_asynchronous: Callable[[URL], AsyncDatabase],
    runner: asyncio.Runner,
    vault: VaultServer,
    vault_path: str,
) -> Callable[..., Trial]:
    """A function that makes a trial of the test's database, whose version 1 has the scheme ``direct``."""

    def make(*, seed: int, alternates: bool, stride: int) -> Trial:
        provider = new_provider()
        with engine.begin() as connection:
            initialise_keys(provider, connection, scheme=Scheme.DIRECT)
        return Trial(
            Database(engine, provider),
            new_asynchronous(engine.url),
            runner,
            secret=lambda: Secret.read(vault, vault_path),
            schemes={1: DIRECT},
            seed=seed,
            alternates=alternates,
            stride=stride,
        )

    return make


@pytest.fixture
def copied(
    empty_url: URL,
    tmp_path: Path,
    new_provider: Callable[..., VaultKeyProvider],
    new_asynchronous: Callable[[URL], AsyncDatabase],
) -> Iterator[Callable[[Trial], None]]:
    """A function that dumps the database of a trial, and lets the trial go on with the restored copy."""
    engine = create_engine(empty_url)

    def copy(trial: Trial) -> None:
        dump(trial.dsn, tmp_path / "dump")
        restore(plain(empty_url), tmp_path / "dump")
        trial.moved_to(Database(engine, new_provider()), new_asynchronous(empty_url))

    yield copy
    engine.dispose()
