"""A real OpenBao, an administrator's client for it, and a check that no failure and no log line shows a secret."""

from __future__ import annotations

import http.server
import logging
import threading
import traceback
import types
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import hvac
import pytest
import requests

from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.errors import VoiceAssistDBError
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import AppRoleLogin, KubernetesLogin, TokenLogin, VaultKeyProvider

Fails = Callable[[type[VoiceAssistDBError]], AbstractContextManager[pytest.ExceptionInfo[Any]]]
Answer = tuple[int, str, str, dict[str, str]]


def administrator(server: EmbeddedOpenBao, namespace: str | None = None) -> hvac.Client:
    session = requests.Session()
    session.trust_env = False
    session.verify = str(server.ca_file) if server.ca_file else True
    return hvac.Client(url=server.address, token=server.root_token, session=session, namespace=namespace)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedOpenBao]:
    """One server in memory for all tests of a worker."""
    with EmbeddedOpenBao() as running:
        yield running


@pytest.fixture(scope="session")
def admin(server: EmbeddedOpenBao) -> Iterator[hvac.Client]:
    """An hvac client with the root token, which does to the server what an operator does."""
    client = administrator(server)
    client.sys.enable_auth_method("approle")
    client.sys.create_or_update_policy("elsewhere", 'path "secret/data/elsewhere" { capabilities = ["read"] }')
    yield client
    client.session.close()


@pytest.fixture
def path() -> str:
    """A path below ``secret/`` that no other test has, where nothing is."""
    return f"test/{uuid.uuid4().hex}"


@pytest.fixture
def policy(admin: hvac.Client, path: str) -> str:
    """Name of a policy that permits the path and nothing else."""
    name = path.replace("/", "-")
    rule = f'path "secret/data/{path}" {{ capabilities = ["create", "read", "update"] }}'
    admin.sys.create_or_update_policy(name, rule)
    return name


@pytest.fixture
def secrets(server: EmbeddedOpenBao) -> set[str]:
    """Everything that may never be shown; tests and fixtures add to it what they make."""
    return {server.root_token}


@pytest.fixture
def keys(secrets: set[str]) -> KeySet:
    """New keys of version 1."""
    made = KeySet.generate()
    assert made.index_key is not None
    secrets |= {made.key.expose().decode(), made.index_key.expose().decode()}
    return made


@pytest.fixture
def new_token(admin: hvac.Client, policy: str, secrets: set[str]) -> Callable[..., str]:
    """Make a token that may use the path, with options of the API."""

    def make(**options: Any) -> str:
        token: str = admin.auth.token.create(**{"policies": [policy], **options})["auth"]["client_token"]
        secrets.add(token)
        return token

    return make


@pytest.fixture
def connect(server: EmbeddedOpenBao, path: str) -> Callable[..., VaultKeyProvider]:
    """Make a provider for the path, as root where no login is given."""

    def make(login: TokenLogin | AppRoleLogin | KubernetesLogin | None = None, **options: Any) -> VaultKeyProvider:
        address = options.pop("address", server.address)
        return VaultKeyProvider(address, login or TokenLogin(server.root_token), **{"path": path, **options})

    return make


@pytest.fixture
def stored(admin: hvac.Client, path: str) -> Callable[[], dict[str, Any]]:
    """Read the fields at the path as the administrator."""

    def read() -> dict[str, Any]:
        answer = admin.secrets.kv.v2.read_secret_version(path, raise_on_deleted_version=True)
        fields: dict[str, Any] = answer["data"]["data"]
        return fields

    return read


def everything_in(error: BaseException) -> Iterator[str]:
    """Yield whatever a crash reporter could print of an exception, except what the tests' own frames hold."""
    yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
    yield "".join(traceback.format_exception(error))
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent):
            continue
        for value in frame.f_locals.values():
            yield repr(value)
            yield repr(getattr(value, "__dict__", None))
            if isinstance(value, types.FunctionType):
                yield repr([cell.cell_contents for cell in value.__closure__ or ()])


@pytest.fixture
def fails(secrets: set[str]) -> Fails:
    """Expect an error that chains nothing, and in which no secret can be found."""

    @contextmanager
    def expect(kind: type[VoiceAssistDBError]) -> Iterator[pytest.ExceptionInfo[Any]]:
        with pytest.raises(kind) as caught:
            yield caught
        assert kind is type(caught.value)
        assert (None, None) == (caught.value.__cause__, caught.value.__context__)
        shown = list(everything_in(caught.value))
        assert not [secret for secret in secrets if any(secret in text for text in shown)]

    return expect


@pytest.fixture(autouse=True)
def quiet_logs(secrets: set[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Log everything, of urllib3 and hvac too, and look for secrets in it after each test."""
    caplog.set_level(logging.DEBUG)
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    text = "\n".join(f"{record.getMessage()} {record.args!r} {record.exc_info!r}" for record in records)
    assert not [secret for secret in secrets if secret in text]


@pytest.fixture
def stand_in() -> Iterator[Callable[[Callable[[str, dict[str, str]], Answer]], str]]:
    """Serve invented answers on loopback, for what the real server cannot be made to say; returns the address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Callable[[str, dict[str, str]], Answer]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def reply(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, kind, body, headers = answer(self.path, dict(self.headers.items()))
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = reply

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(running)
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{running.server_address[1]}"

    yield start
    for running in servers:
        running.shutdown()
        running.server_close()
