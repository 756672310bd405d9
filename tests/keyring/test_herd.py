"""A herd of threads or tasks that needs keys: what reaches the key store, what each caller gets, and what others notice of it."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

import hvac
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Engine, text

from tests.clock import Clock
from tests.conftest import VaultServer
from tests.keyring.counted import FAILING, FORBIDDEN, HANGING, HEALTHY, SLOW, Counted, counted
from voiceassist_db import AsyncDatabase, Database, Patient, create_async_engine, create_engine, pacing
from voiceassist_db.errors import KeyStoreForbiddenError, KeyStoreUnavailableError, VoiceAssistDBError
from voiceassist_db.keyring import KeyringSource, register
from voiceassist_db.keyring.single_flight import FIRST_RETRY_S, Fetched, SingleFlight, wait_in_thread
from voiceassist_db.keys import Key
from voiceassist_db.pacing import PERIOD_S, REQUESTS, Pace
from voiceassist_db.providers.vault import AppRoleLogin, TokenLogin, VaultKeyProvider
from voiceassist_db.providers.vault.tokens import LoginToken

THREADS, TASKS = 50, 500
LASTS_S: Final = 1.3
"""How long the herd reads: longer than a pause between two fetches."""

TIMEOUT_S: Final = 3.0
POOL: Final[dict[str, Any]] = {
    "pool_size": 5,
    "max_overflow": 0,
    "pool_timeout": 20,
    "connect_args": {"connect_timeout": 120},
}
EXPECTED: Final[dict[str, set[type[Exception]]]] = {
    HEALTHY: set(),
    SLOW: set(),
    FAILING: {KeyStoreUnavailableError},
    FORBIDDEN: {KeyStoreForbiddenError},
    HANGING: {KeyStoreUnavailableError},
}


@pytest.fixture
def store(vault: VaultServer) -> Iterator[Counted]:
    """A proxy before the key store."""
    with counted(vault.address) as made:
        yield made


@pytest.fixture
def admin(vault: VaultServer) -> hvac.Client:
    """The key store's administrator."""
    return hvac.Client(vault.address, vault.root_token)


@pytest.fixture
def policy(admin: hvac.Client, vault_path: str) -> str:
    """A policy by which the test's secret may be read."""
    name = f"herd-{secrets.token_hex(6)}"
    mount, _, path = vault_path.partition("/")
    admin.sys.create_or_update_policy(name, f'path "{mount}/data/{path}" {{ capabilities = ["read"] }}')
    return name


@pytest.fixture
def app_role(admin: hvac.Client, policy: str) -> AppRoleLogin:
    """A login of its own."""
    admin.sys.enable_auth_method("approle", path=policy)
    admin.auth.approle.create_or_update_approle("reader", token_policies=[policy], token_ttl="1h", mount_point=policy)
    role_id = admin.auth.approle.read_role_id("reader", mount_point=policy)["data"]["role_id"]
    secret_id = admin.auth.approle.generate_secret_id("reader", mount_point=policy)["data"]["secret_id"]
    return AppRoleLogin(role_id, secret_id, mount=policy)


@pytest.fixture
def new_reader(store: Counted, app_role: AppRoleLogin, vault_path: str) -> Callable[..., VaultKeyProvider]:
    """A function that makes an application's own client of the key store, which goes through the proxy."""
    mount, _, path = vault_path.partition("/")

    def make(login: AppRoleLogin | TokenLogin = app_role) -> VaultKeyProvider:
        return VaultKeyProvider(store.address, login, mount=mount, path=path, timeout_s=TIMEOUT_S)

    return make


@pytest.fixture
def prepared(database: Database) -> Callable[[], None]:
    """A function that puts a row under a key version that is new; before it, there is one of version 1."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", name="old"))

    def change() -> None:
        provider = database.keys.provider
        keys = provider.fetch()
        new = replace(keys, version=2, key=Key.generate(), previous_version=1, previous_key=keys.key)
        provider.replace(keys, new)
        with database.engine.begin() as connection:
            register(connection, provider.fetch())
        with Database(database.engine, provider).transaction() as tx:
            tx.patients.add(Patient(patient_id="PT-2", name="new"))

    return change


class Waits:
    """Records how long each caller may wait in a transaction: from when it first needs a fetch until the latest deadline it sets.

    The shared fetch keeps to a deadline, whatever it waits for. A caller that set two of them could wait twice as long.

    Attributes:
        longest_s: The longest such time.
        fetches: The most fetches that somebody waited for during one transaction: its caller, or those who had the connection that it
            waited for.

    Args:
        keys: The keys that the callers need.
        caller: Returns who calls.
        gathers: So many callers must have begun before the first fetch does.
    """

    def __init__(self, keys: KeyringSource, caller: Callable[[], object], *, gathers: int = 0) -> None:
        self.longest_s = 0.0
        self.fetches = 0
        self._have_begun = threading.Event()
        self._missing = gathers
        self._counting = threading.Lock()
        if not gathers:
            self._have_begun.set()
        self._deadline = keys.deadline
        keys.deadline = self._asked  # type: ignore[misc]
        self._caller = caller
        self._began: dict[object, float] = {}
        self._waited_for: dict[object, set[Future[None]]] = {}
        self._flights = keys._flights
        self._fetch, self._wait = self._flights.fetch, self._flights._wait
        self._flights.fetch = self._recording  # type: ignore[method-assign]
        self._flights._wait = self._waiting

    def begin(self) -> None:
        """Note that this caller begins a transaction."""
        self._began.pop(self._caller(), None)
        self._waited_for[self._caller()] = set()

    def end(self) -> None:
        """Note that it has ended."""
        self.fetches = max(self.fetches, len(self._waited_for.pop(self._caller())))

    def _asked(self) -> float:
        deadline = self._deadline()
        with self._counting:
            self._missing -= 1
            if self._missing == 0:
                self._have_begun.set()
        return deadline

    def _waiting(self, landed: Future[None], seconds: float) -> object:
        if seconds > 0:
            for fetches in list(self._waited_for.values()):
                fetches.add(landed)
        return self._wait(landed, seconds)

    def _recording(self, *, after: int, deadline: float, waits: bool = True) -> Fetched:
        assert self._have_begun.wait(60)
        began = self._began.setdefault(self._caller(), time.monotonic())
        self.longest_s = max(self.longest_s, deadline - began)
        return self._fetch(after=after, deadline=deadline, waits=waits)


def require_few(store: Counted) -> None:
    """At most two requests in any second, the herd's first use of the keys included."""
    assert store.arrived, "nobody asked the store"
    for first, third in zip(store.arrived, store.arrived[REQUESTS:], strict=False):
        assert third - first >= PERIOD_S, [f"{each - store.arrived[0]:.2f}" for each in store.arrived]


def held(store: Counted, engine: Engine) -> list[int]:
    """Record how many connections are out of the pool whenever a request arrives."""
    counts: list[int] = []
    store.on_arrival = lambda: counts.append(engine.pool.checkedout())  # type: ignore[attr-defined]  # of a QueuePool
    return counts


def read(database: Database, waits: Waits, errors: list[Exception]) -> None:
    """Read again and again."""
    until = time.monotonic() + LASTS_S
    while time.monotonic() < until:
        waits.begin()
        try:
            with database.transaction() as tx:
                assert tx.patients.get("PT-2").name
        except VoiceAssistDBError as error:
            errors.append(error)
        waits.end()
        time.sleep(0.2)


CELLS: Final = pytest.mark.parametrize(
    ("state", "is_cold"), [(state, is_cold) for state in EXPECTED for is_cold in (True, False)]
)


@pytest.mark.wide
@CELLS
def test_a_herd_of_threads(
    store: Counted,
    new_reader: Callable[..., VaultKeyProvider],
    prepared: Callable[[], None],
    database_url: URL,
    state: str,
    is_cold: bool,
) -> None:
    """Fifty threads read without keys, or under a version that they lack; other code uses the same pool."""
    with Database(create_engine(database_url, **POOL), new_reader()) as herd:
        if not is_cold:
            with herd.transaction() as tx:
                assert tx.patients.get("PT-1").name == "old"
        prepared()
        store.state = state
        errors: list[Exception] = []
        waits = Waits(herd.keys, threading.get_ident, gathers=0 if is_cold else THREADS)
        others, connections = [], held(store, herd.engine)
        threads = [threading.Thread(target=read, args=(herd, waits, errors)) for _ in range(THREADS)]
        for each in threads:
            each.start()
        while any(each.is_alive() for each in threads):
            with herd.engine.connect() as connection:
                others.append(connection.scalar(text("SELECT 1")))
            time.sleep(0.05)
        for each in threads:
            each.join()
    assert {type(each) for each in errors} == EXPECTED[state]
    require_few(store)
    assert 0 < waits.longest_s <= TIMEOUT_S
    assert state != HANGING or waits.fetches == 1
    assert not is_cold or max(connections) <= 1  # which is the other code's
    assert set(others) == {1}


@pytest.mark.wide
@CELLS
async def test_a_herd_of_tasks(
    store: Counted,
    new_reader: Callable[..., VaultKeyProvider],
    prepared: Callable[[], None],
    database_url: URL,
    state: str,
    is_cold: bool,
) -> None:
    """The same for 500 tasks of one loop."""
    errors: list[Exception] = []

    async def reading(herd: AsyncDatabase) -> None:
        until = time.monotonic() + LASTS_S
        while time.monotonic() < until:
            waits.begin()
            try:
                async with herd.transaction() as tx:
                    assert await tx.run(lambda each: each.patients.get("PT-2").name)
            except VoiceAssistDBError as error:
                errors.append(error)
            waits.end()
            await asyncio.sleep(1.0)

    async with AsyncDatabase(create_async_engine(database_url, **POOL), new_reader()) as herd:
        if not is_cold:
            async with herd.transaction() as tx:
                assert await tx.run(lambda each: each.patients.get("PT-1").name) == "old"
        prepared()
        store.state = state
        waits, others = Waits(herd.keys, asyncio.current_task), []
        connections = held(store, herd.engine.sync_engine)
        tasks = [asyncio.create_task(reading(herd)) for _ in range(TASKS)]
        while not all(each.done() for each in tasks):
            async with herd.engine.connect() as connection:
                others.append(await connection.scalar(text("SELECT 1")))
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
    assert {type(each) for each in errors} == EXPECTED[state]
    require_few(store)
    assert 0 < waits.longest_s <= TIMEOUT_S
    assert state != HANGING or waits.fetches == 1
    assert not is_cold or max(connections) <= 1  # which is the other code's
    assert set(others) == {1}


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(0.0, 1.5), min_size=1, max_size=30))
def test_no_three_requests_begin_within_a_second(pauses: list[float]) -> None:
    """Whenever they are wanted; and none waits longer than it must."""
    begun: list[float] = []
    clock, pace = Clock(), Pace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pacing, "time", clock)
        for pause_s in pauses:
            clock.now += pause_s
            wanted_at = clock.now
            with pace.turn():
                pass
            earliest = begun[-REQUESTS] + PERIOD_S if len(begun) >= REQUESTS else 0.0
            assert clock.now == pytest.approx(max(wanted_at, earliest))
            begun.append(clock.now)


@pytest.mark.parametrize("situation", ["recovery", "revoked", "half of its life"])
def test_a_third_request_waits_for_its_turn(
    store: Counted,
    new_reader: Callable[..., VaultKeyProvider],
    admin: hvac.Client,
    policy: str,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    situation: str,
) -> None:
    """A failed login, a login and a read; a refused read, a login and a read; a read, a look at the token and its renewal."""
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    token = admin.auth.token.create(policies=[policy], ttl="1h", renewable=True)["auth"]["client_token"]
    provider = new_reader(TokenLogin(token)) if situation == "half of its life" else new_reader()
    flights = SingleFlight(provider, wait_in_thread)
    match situation:
        case "recovery":
            store.state = FAILING
            with pytest.raises(KeyStoreUnavailableError):
                flights.fetch(after=0, deadline=flights.deadline())
            store.state = HEALTHY
            time.sleep(FIRST_RETRY_S)
        case "revoked":
            flights.fetch(after=0, deadline=flights.deadline())
            assert isinstance(provider._token, LoginToken)
            assert provider._token._lease is not None
            admin.auth.token.revoke(provider._token._lease.token.value)
            store.arrived.clear()
            clock.now += PERIOD_S
        case _:
            hvac.Client(store.address, token).auth.token.renew_self(increment="10m")
            store.arrived.clear()
    assert (
        database.keys.provider.fetch().version
        == flights.fetch(after=flights.begun, deadline=flights.deadline()).keys.version
    )
    assert len(store.arrived) == REQUESTS + 1
    assert clock.slept == [PERIOD_S]
