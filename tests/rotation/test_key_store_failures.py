"""A key store that is down, sealed or refuses, at each of a rotation's requests: a clear error, nothing lost, and the next run goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import hvac
import pytest
import requests
from sqlalchemy import Engine

from tests.rotation.conftest import Trial
from tests.rotation.proxy import Point, Proxy, proxied
from voiceassist_db import Database, Patient
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.errors import (
    KeyNotRegisteredError,
    KeyStoreError,
    KeyStoreForbiddenError,
    KeyStoreSealedError,
    KeyStoreUnavailableError,
    NothingToDoError,
)
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.rotation import plan, retire, rotate
from voiceassist_db.status import read_status

READ, WRITE = b"GET /v1/secret/data/", b"POST /v1/secret/data/"
REQUESTS = {
    "the first look": (READ, 0),
    "the look under the lease": (READ, 1),
    "the look before the write": (READ, 2),
    "the write": (WRITE, 0),
    "the look after the write": (READ, 3),
}
"""What a rotation asks of the key store, in this order: kind of request, and how many of the kind there are before."""

SOME_REQUESTS = [
    pytest.param(
        each, marks=[pytest.mark.long] if each in {"the look under the lease", "the look before the write"} else []
    )
    for each in REQUESTS
]
ROWS = 200
POLICY = "rotation"


@pytest.fixture(scope="module")
def bao() -> Iterator[EmbeddedOpenBao]:
    """A server of this module's own, which may be sealed."""
    with EmbeddedOpenBao() as running:
        yield running


@pytest.fixture(scope="module")
def operator(bao: EmbeddedOpenBao) -> Iterator[hvac.Client]:
    """Its operator."""
    with requests.Session() as session:
        session.trust_env = False
        yield hvac.Client(url=bao.address, token=bao.root_token, session=session)


@pytest.fixture
def proxy(bao: EmbeddedOpenBao) -> Iterator[Proxy]:
    """A proxy to the server."""
    parts = urlsplit(bao.address)
    assert parts.hostname
    assert parts.port
    with proxied(parts.hostname, parts.port) as made:
        yield made


def permit(operator: hvac.Client, path: str, *capabilities: str) -> None:
    """Let the rotation's token do this with the secret, and nothing else."""
    listed = ", ".join(f'"{each}"' for each in capabilities)
    operator.sys.create_or_update_policy(POLICY, f'path "secret/data/{path}" {{ capabilities = [{listed}] }}')


@pytest.fixture
def path(vault_path: str) -> str:
    """The secret's path below its mount."""
    return vault_path.partition("/")[2]


@pytest.fixture
def trial(engine: Engine, bao: EmbeddedOpenBao, operator: hvac.Client, proxy: Proxy, path: str) -> Trial:
    """A trial whose keys are in the module's own server, behind the proxy, with a token that may do no more than it must."""
    permit(operator, path, "create", "read", "update")
    token = operator.auth.token.create(policies=[POLICY])["auth"]["client_token"]
    provider = VaultKeyProvider(f"http://127.0.0.1:{proxy.port}", TokenLogin(token), path=path)
    with engine.begin() as connection:
        initialise_keys(provider, connection)
    return Trial(engine, provider, ROWS)


def fails(trial: Trial, proxy: Proxy, point: Point) -> KeyStoreError:
    """Rotate up to a point, and return the error."""
    proxy.point = point
    with pytest.raises(KeyStoreError) as caught:
        rotate(trial.engine, KeyringSource(trial.provider))
    assert point.is_past
    proxy.point = None
    return caught.value


def goes_on(trial: Trial, *, is_written: bool) -> None:
    """Assert that nothing is lost, that no row is under a new key, and that the next run finishes with the same key or a first one."""
    trial.check()
    stored = trial.provider.fetch()
    assert (2 if is_written else 1) == stored.version
    assert {1: ROWS} == trial.versions()
    assert trial.ask("SELECT version FROM encryption_keys") == [(1,)]
    if not is_written:
        resume_says_what_status_says(trial)
    trial.finish()
    assert 2 == trial.provider.fetch().version
    assert not is_written or stored.key == trial.provider.fetch().key


def resume_says_what_status_says(trial: Trial) -> None:
    """Assert that a command which may make no key names the run that has none, where `status` lists it, and makes none."""
    with trial.engine.connect() as connection:
        is_listed = bool(read_status(connection).unfinished)
    told = "from version 1 to 2 began, and its new key was never made" if is_listed else "no rotation is unfinished"
    for command in (plan, rotate):
        with pytest.raises(NothingToDoError, match=told):
            command(trial.engine, KeyringSource(trial.provider), resume_only=True)
    assert 1 == trial.provider.fetch().version


@pytest.mark.parametrize("at", REQUESTS)
def test_a_store_that_is_out_of_reach(trial: Trial, proxy: Proxy, at: str) -> None:
    """The request never gets there: nothing is written by it."""
    words, skipped = REQUESTS[at]
    error = fails(trial, proxy, Point(words, skipped=skipped))
    assert KeyStoreUnavailableError is type(error)
    assert "cannot be reached" in str(error)
    goes_on(trial, is_written=at == "the look after the write")


def test_a_write_without_an_answer(trial: Trial, proxy: Proxy) -> None:
    """Nobody knows whether the new key was stored, and the error says so; it was, and the next run takes it and makes no other."""
    error = fails(trial, proxy, Point(WRITE, is_forwarded=True))
    assert KeyStoreUnavailableError is type(error)
    assert "Whether the secret was written is not known" in str(error)
    goes_on(trial, is_written=True)


@pytest.mark.parametrize("at", SOME_REQUESTS)
def test_a_store_that_is_sealed(
    trial: Trial, proxy: Proxy, bao: EmbeddedOpenBao, operator: hvac.Client, at: str
) -> None:
    """The server restarted, and waits for its operators."""
    words, skipped = REQUESTS[at]
    try:
        error = fails(trial, proxy, Point(words, skipped=skipped, happens=operator.sys.seal))
    finally:
        unseal(operator, bao.unseal_key, trial.provider)
    assert KeyStoreSealedError is type(error)
    assert "vault operator unseal" in str(error)
    goes_on(trial, is_written=at == "the look after the write")


def test_a_writer_goes_on_with_a_live_key_while_the_store_is_sealed(
    trial: Trial, bao: EmbeddedOpenBao, operator: hvac.Client
) -> None:
    """It cannot learn the new key: a row under the previous one, while that is live, is better than none; retired, it is not."""
    process = Database(trial.engine, trial.provider, ttl_s=3600)
    keys = KeyringSource(trial.provider)
    with process.transaction() as tx:
        before = len(tx.patients.page(limit=10_000, fields=[]))
    assert rotate(trial.engine, keys).done
    operator.sys.seal()
    try:
        with process.transaction() as tx:
            tx.patients.add(Patient(patient_id="PT-one", ssn="900-00-0001"))
            assert tx.patients.add_many([Patient(patient_id=f"PT-many-{n}", name=f"Zoë {n}") for n in range(3)]) == 3
        with trial.engine.connect() as connection:
            assert read_status(connection).tables["patient_data"] == {1: 4, 2: before}
    finally:
        unseal(operator, bao.unseal_key, trial.provider)
    report = rotate(trial.engine, keys)
    assert (report.rows, report.done) == (4, True)
    retire(trial.engine, keys, grace_days=0)
    operator.sys.seal()
    try:
        with pytest.raises(KeyNotRegisteredError), process.transaction() as tx:
            tx.patients.add(Patient(patient_id="PT-late"))
    finally:
        unseal(operator, bao.unseal_key, trial.provider)
    with trial.engine.connect() as connection:
        assert read_status(connection).tables["patient_data"] == {2: before + 4}


def unseal(operator: hvac.Client, key: str, provider: VaultKeyProvider) -> None:
    """Unseal the server, and wait until it reads secrets again."""
    operator.sys.submit_unseal_key(key)
    deadline = time.monotonic() + 300
    while True:
        try:
            provider.fetch()
        except (KeyStoreSealedError, KeyStoreUnavailableError):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


@pytest.mark.parametrize("at", SOME_REQUESTS)
def test_a_store_that_forbids(trial: Trial, proxy: Proxy, operator: hvac.Client, path: str, at: str) -> None:
    """Somebody changes the policy meanwhile: the error holds the stanza that is missing."""
    words, skipped = REQUESTS[at]
    left = ["read"] if words is WRITE else ["update"]
    error = fails(trial, proxy, Point(words, skipped=skipped, happens=lambda: permit(operator, path, *left)))
    assert KeyStoreForbiddenError is type(error)
    assert f'path "secret/data/{path}" {{ capabilities = ' in str(error)
    permit(operator, path, "create", "read", "update")
    goes_on(trial, is_written=at == "the look after the write")
