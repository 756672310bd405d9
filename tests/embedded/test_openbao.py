"""EmbeddedOpenBao against the real ``bao``."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from voiceassist_db.embedded import EmbeddedOpenBao, openbao
from voiceassist_db.embedded.process import free_port
from voiceassist_db.errors import EmbeddedServerError


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedOpenBao]:
    """One server in development mode for the tests that only use it."""
    with EmbeddedOpenBao() as running:
        yield running


def call(server: EmbeddedOpenBao, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(server.ca_file) if server.ca_file is not None else True
        headers = {"X-Vault-Token": server.root_token}
        response = session.request(method, f"{server.address}/v1/{path}", json=body, headers=headers, timeout=10)
    response.raise_for_status()
    answer: dict[str, Any] = response.json() if response.content else {}
    return answer


def write_and_read(server: EmbeddedOpenBao) -> str:
    call(server, "POST", "secret/data/keys", {"data": {"version": "1"}})
    version: str = call(server, "GET", "secret/data/keys")["data"]["data"]["version"]
    return version


def test_the_key_value_store_works(server: EmbeddedOpenBao) -> None:
    """`secret/` is a store of version 2, which keeps versions."""
    assert "1" == write_and_read(server)
    assert "2" == call(server, "GET", "sys/mounts")["secret/"]["options"]["version"]


def test_it_can_be_sealed_and_unsealed(server: EmbeddedOpenBao) -> None:
    """The unseal key of development mode opens the server again, for tests of a sealed one."""
    call(server, "PUT", "sys/seal")
    assert call(server, "GET", "sys/seal-status")["sealed"]
    assert not call(server, "PUT", "sys/unseal", {"key": server.unseal_key})["sealed"]


def test_the_tokens_are_in_no_repr_and_no_command_line(
    server: EmbeddedOpenBao, command_lines: Callable[[], str]
) -> None:
    """Neither a log line with the object nor `ps` shows the root token or the unseal key."""
    shown = repr(server) + command_lines()
    assert server.address.removeprefix("http://") in shown
    assert server.root_token not in shown
    assert server.unseal_key not in shown


def test_tls_verifies_with_its_authority() -> None:
    """With `ca_file` the certificate is trusted for 127.0.0.1; without it the connection is refused."""
    with EmbeddedOpenBao(tls=True) as server:
        assert server.address.startswith("https://")
        assert "1" == write_and_read(server)
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{server.address}/v1/sys/health", timeout=10)


def test_tls_with_a_directory_is_refused(directory: Path) -> None:
    """The one combination that does not exist is a bad argument."""
    with pytest.raises(ValueError, match="only in memory"):
        EmbeddedOpenBao(directory, tls=True)


def test_proxies_of_the_environment_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start behind a company's proxy talks to loopback itself."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("BAO_ADDR", "http://127.0.0.1:9")
    with EmbeddedOpenBao() as server:
        assert "1" == write_and_read(server)


def test_nothing_is_left_in_the_temporary_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token file, the log and the certificates go with the server."""
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    with EmbeddedOpenBao(tls=True) as server:
        assert 1 == len(list(directory.iterdir()))
    assert [] == list(directory.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.mark.wide
def test_a_given_directory_keeps_secrets_and_keys(directory: Path) -> None:
    """A secret is there after a restart, unsealed by the keys in a file of mode 0600, the only one that holds them."""
    server = EmbeddedOpenBao(directory)
    with server:
        assert "1" == write_and_read(server)
    token = server.root_token
    with server:
        assert "1" == call(server, "GET", "secret/data/keys")["data"]["data"]["version"]
        assert token == server.root_token
        with pytest.raises(EmbeddedServerError, match=f"already runs on {directory}"):
            EmbeddedOpenBao(directory).start()
    keys = directory / "openbao.keys"
    holders = [file for file in directory.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]
    assert [keys] == holders
    assert 0o600 == stat.S_IMODE(keys.stat().st_mode)
    keys.unlink()
    with pytest.raises(EmbeddedServerError, match=r"openbao\.keys is missing or damaged"):
        server.start()
    assert (directory / "openbao-raft" / "vault.db").exists()


def test_a_port_lost_to_another_process_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start tries again where somebody took the port between its choice and the bind."""
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        taken: int = thief.getsockname()[1]
        ports = iter([taken])
        monkeypatch.setattr(openbao, "free_port", lambda: next(ports, None) or free_port())
        with EmbeddedOpenBao() as server:
            assert not server.address.endswith(f":{taken}")
            assert "1" == write_and_read(server)
