"""A process that forks while it asks Vault: each child asks for itself, at once, and the parent gets its own answer."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hvac
import pytest
import trustme
from sqlalchemy import URL, Engine

from tests.conftest import plain
from tests.providers import forking
from tests.providers.wire import Bytes, Wire
from tests.providers.wire import http as answer_of
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import VaultKeyProvider

LOOK_UP, LOG_IN, READ = b"GET /v1/auth/token/lookup-self", b"POST /v1/auth/approle/login", b"GET /v1/secret/data/"


class Holding:
    """Passes requests on to the real server, and holds back the answer to the first of a kind.

    Args:
        server: The real server.
        kind: How the request begins whose answer is held back; None to hold none back.
    """

    def __init__(self, server: EmbeddedOpenBao, kind: bytes | None) -> None:
        self._address = urlsplit(server.address)
        self.kind = kind
        self._lock = threading.Lock()
        self.is_held = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, request: bytes) -> Bytes:
        with socket.create_connection((self._address.hostname, self._address.port)) as server:
            server.sendall(request)
            response = http.client.HTTPResponse(server)
            response.begin()
            body = response.read()
        answer = answer_of(body, status=f"{response.status} {response.reason}")
        half = len(answer) // 2
        yield answer[:half]
        with self._lock:
            is_first = self.kind is not None and request.startswith(self.kind) and not self.is_held.is_set()
            if is_first:
                self.is_held.set()
        if is_first:
            self.may_go_on.wait(forking.HUNG_S)
        yield answer[half:]


@contextmanager
def forked(way: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the process that forks."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", forking.__name__, way, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def lines(process: subprocess.Popen[str], last: str) -> list[str]:
    """Read what the process says, up to a line that begins so."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line.strip())
        if line.startswith(last):
            break
    return said


@pytest.fixture(params=[None, trustme.CA()], ids=["http", "https"])
def authority(request: pytest.FixtureRequest) -> trustme.CA | None:
    """Without TLS, and with it."""
    made: trustme.CA | None = request.param
    return made


@pytest.fixture
def app_role(admin: hvac.Client, policy: str, secrets: set[str]) -> tuple[str, ...]:
    """An AppRole, by which each fetch of the other process logs in."""
    approle = admin.auth.approle
    approle.create_or_update_approle(policy, token_policies=[policy], token_ttl="1h")
    secret_id = approle.generate_secret_id(policy)["data"]["secret_id"]
    secrets.add(secret_id)
    return "AppRoleLogin", approle.read_role_id(policy)["data"]["role_id"], secret_id


@pytest.mark.parametrize(
    "kind",
    [pytest.param(LOG_IN, marks=pytest.mark.wide), pytest.param(LOOK_UP, marks=pytest.mark.wide), READ],
    ids=["log in", "look up", "read"],
)
def test_a_fork_in_the_middle_of_a_request_disturbs_nobody(
    kind: bytes,
    authority: trustme.CA | None,
    server: EmbeddedOpenBao,
    app_role: tuple[str, ...],
    new_token: Callable[..., str],
    connect: Callable[..., VaultKeyProvider],
    keys: KeySet,
    path: str,
    tmp_path: Path,
) -> None:
    """Half of an answer has reached a thread of the parent, which holds a lock while it waits for the rest."""
    connect().create(keys)
    login = app_role if kind == LOG_IN else ("TokenLogin", new_token(ttl="1h"))
    ca_file = tmp_path / "ca.pem"
    if authority is not None:
        authority.cert_pem.write_to_path(str(ca_file))
    holding = Holding(server, kind)
    with (
        Wire(holding, authority=authority) as wire,
        forked("fetch", wire.address, str(ca_file) if authority else "", path, "", *login) as process,
    ):
        assert holding.is_held.wait(forking.HUNG_S)
        told(process)
        children = lines(process, "the children")
        assert [f"child {forking.digest(keys)}"] * forking.CHILDREN == children[:-1]
        holding.may_go_on.set()
        assert [f"parent {forking.digest(keys)}"] == lines(process, "parent")
        assert 0 == process.wait()


@pytest.mark.wide
def test_forks_at_any_moment_disturb_nobody(
    server: EmbeddedOpenBao,
    app_role: tuple[str, ...],
    connect: Callable[..., VaultKeyProvider],
    keys: KeySet,
    path: str,
) -> None:
    """Three threads log in and read all the time, while children are forked that do the same."""
    connect().create(keys)
    with forked("often", server.address, "", path, "", *app_role) as process:
        said = lines(process, "parent")
        assert 0 == process.wait()
    assert [f"child {forking.digest(keys)}"] * forking.FORKS == said[:-1]
    assert f"parent {forking.digest(keys)}" == said[-1]


@pytest.mark.wide
def test_a_child_renews_the_keyring_that_a_thread_of_its_parent_was_renewing(
    server: EmbeddedOpenBao,
    connect: Callable[..., VaultKeyProvider],
    path: str,
    engine: Engine,
    database_url: URL,
) -> None:
    """With the parent's lock, the child would use its first keyring for ever, and never see a new key."""
    with engine.begin() as connection:
        initialise_keys(connect(), connection)
    holding = Holding(server, None)
    with Wire(holding) as wire:
        arguments: Any = (wire.address, "", path, plain(database_url), "TokenLogin", server.root_token)
        with forked("renewal", *arguments) as process:
            assert ["loaded"] == lines(process, "loaded")
            holding.kind = READ
            told(process)
            assert holding.is_held.wait(forking.HUNG_S)
            told(process)
            assert [*["child renewed"] * forking.CHILDREN, "the children have ended"] == lines(process, "the children")
            holding.may_go_on.set()
            assert ["parent renewed"] == lines(process, "parent")
            assert 0 == process.wait()
