"""No token goes to another machine in clear, whatever the address, the name service, the environment and the server say."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hvac
import pytest
import trustme

from tests.providers.wire import Wire, http
from tests.safety.conftest import OWN_ADDRESS
from voiceassist_db import config
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.errors import ConfigurationError, KeyStoreTLSError, KeyStoreUnavailableError, UnsafeConnectionError
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import AppRoleLogin, KubernetesLogin, TokenLogin, VaultKeyProvider

Connect = Callable[..., VaultKeyProvider]

ANSWER = b'{"errors":["permission denied"]}'


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Wire]:
    """A server at an address of this machine that other machines can reach: as far away as a test can go."""
    with Wire(lambda _: [http(ANSWER, status="403 Forbidden")], host=OWN_ADDRESS) as running:
        yield running


@pytest.fixture(scope="module")
def tls_server() -> Iterator[EmbeddedOpenBao]:
    """A server that speaks TLS with an authority of its own."""
    with EmbeddedOpenBao(tls=True) as running:
        yield running


LOGINS = [TokenLogin("LEAK-1"), AppRoleLogin("LEAK-2", "LEAK-3"), KubernetesLogin("app", Path("/nonexistent"))]


@pytest.mark.parametrize("login", LOGINS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("address", ["http://{host}:{port}", "HTTP://localhost:1@{host}:{port}", "http://vault:{port}"])
def test_http_to_another_machine_is_refused_when_the_provider_is_made(
    address: str, login: Any, elsewhere: Wire, connect: Connect, secrets: set[str], fails: Any
) -> None:
    """Whoever makes the provider is told, and no connection is opened."""
    secrets |= {"LEAK-1", "LEAK-2", "LEAK-3"}
    elsewhere.requests.clear()
    with fails(UnsafeConnectionError) as caught:
        connect(login, address=address.format(host=elsewhere.address.split("/")[2].split(":")[0], port=elsewhere.port))
    message = str(caught.value)
    assert all(
        each in message for each in ("no token was sent", "https://", "VAULT_CACERT", "VOICEASSIST_DB_ALLOW_UNSAFE=1")
    )
    assert [] == elsewhere.requests


def test_the_switch_for_development_goes_on_with_a_warning(
    elsewhere: Wire, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The request reaches the other machine, and the log says so once for each provider."""
    elsewhere.requests.clear()
    provider = connect(TokenLogin("a-token"), address=elsewhere.address, allow_unsafe=True)
    for _ in range(2):
        with pytest.raises(Exception, match="token"):
            provider.fetch()
    assert b"a-token" in elsewhere.requests[0]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["in clear" in each and "never for real patients" in each for each in warnings] == [True]


@pytest.mark.parametrize("address", ["http://127.0.0.1", "http://localhost", "https://vault.example"])
def test_a_safe_address_needs_no_warning(address: str, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """The switch is no reason to warn where nothing is unsafe."""
    connect(address=address, allow_unsafe=True)
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("login", LOGINS[:2], ids=lambda each: type(each).__name__)
def test_a_localhost_that_leads_elsewhere_gets_no_token(
    login: Any,
    elsewhere: Wire,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    secrets: set[str],
    fails: Any,
) -> None:
    """A name service can give any address for it. The connection itself is looked at, before anything is sent."""
    secrets |= {"LEAK-1", "LEAK-2", "LEAK-3"}
    elsewhere.requests.clear()
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *rest, **options: resolve(OWN_ADDRESS, *rest, **options))
    address = f"http://localhost:{elsewhere.port}"
    with fails(UnsafeConnectionError) as caught:
        connect(login, address=address).fetch()
    assert "no token was sent" in str(caught.value)
    assert not any(elsewhere.requests)
    with pytest.raises(Exception, match=r"token|login"):
        connect(login, address=address, allow_unsafe=True).fetch()
    assert any(b"LEAK" in each for each in elsewhere.requests)


ENVIRONMENT = {"VAULT_TOKEN": "LEAK-4", "VAULT_SECRET_ID": "LEAK-5"}


def test_the_environment_decides_the_same(secrets: set[str], fails: Any, caplog: pytest.LogCaptureFixture) -> None:
    """``VAULT_ADDR`` is refused or warned about, by the switch that databases have."""
    secrets |= {"LEAK-4", "LEAK-5"}
    environment = {**ENVIRONMENT, "VAULT_ADDR": "http://vault.example:8200"}
    with fails(UnsafeConnectionError):
        config.key_provider(environment)
    assert "without TLS" in (config.key_store_problem(environment) or "")
    assert not caplog.records
    config.key_provider({**environment, "VOICEASSIST_DB_ALLOW_UNSAFE": "1"})
    assert "never for real patients" in caplog.text


@pytest.mark.parametrize("address", ["http://[vault", "https://vault\\@evil", "unix:///run/vault.sock", "vault:8200"])
def test_a_check_names_an_address_that_is_none(address: str) -> None:
    """`check` says so, and does not stop with an error of its own."""
    assert "VAULT_ADDR" in (config.key_store_problem({"VAULT_ADDR": address}) or "")
    with pytest.raises(ConfigurationError, match="VAULT_ADDR"):
        config.key_provider({**ENVIRONMENT, "VAULT_ADDR": address})


def test_no_setting_of_the_environment_weakens_tls(
    tls_server: EmbeddedOpenBao,
    connect: Connect,
    keys: KeySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    secrets: set[str],
    fails: Any,
) -> None:
    """Vault's own tools skip the check of certificates on demand, proxies see tokens, and a key log opens the connection."""
    secrets.add(tls_server.root_token)
    with Wire(lambda _: [http(b"{}")]) as proxy:
        for name in ("VAULT_SKIP_VERIFY", "CURL_INSECURE"):
            monkeypatch.setenv(name, "1")
        for name in (
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "VAULT_HTTP_PROXY",
            "VAULT_PROXY_ADDR",
            "VAULT_AGENT_ADDR",
        ):
            monkeypatch.setenv(name, proxy.address)
        for name in ("VAULT_CACERT", "VAULT_CAPATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(tls_server.ca_file))
        monkeypatch.setenv("VAULT_ADDR", proxy.address)
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
        monkeypatch.setenv("no_proxy", "")
        login = TokenLogin(tls_server.root_token)
        with fails(KeyStoreTLSError):
            connect(login, address=tls_server.address).fetch()
        connect(login, address=tls_server.address, ca_file=tls_server.ca_file).create(keys)
        assert [] == proxy.requests
    log = tmp_path / "keys.log"
    assert [] == [line for line in log.read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("content", ["", "\n", "no certificate"])
def test_a_file_without_an_authority_trusts_nobody(
    content: str, tls_server: EmbeddedOpenBao, connect: Connect, tmp_path: Path, secrets: set[str], fails: Any
) -> None:
    """An empty file is no reason to fall back on the public authorities."""
    secrets.add(tls_server.root_token)
    file = tmp_path / "ca.pem"
    file.write_text(content)
    for ca_file in (file, tmp_path):  # of a directory, the certificates that OpenSSL's hashes name
        with fails(KeyStoreTLSError):
            connect(TokenLogin(tls_server.root_token), address=tls_server.address, ca_file=ca_file).fetch()


def test_a_certificate_for_another_name_is_refused(
    connect: Connect, tmp_path: Path, secrets: set[str], fails: Any
) -> None:
    """The authority is trusted, and its server is another one than was asked for."""
    login = TokenLogin("LEAK-6")
    secrets.add(login.token)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Wire(lambda _: [http(ANSWER)], authority=authority) as wire:
        address = f"https://localhost:{wire.port}"
        with fails(KeyStoreTLSError) as caught:
            connect(login, address=address, ca_file=tmp_path / "ca.pem").fetch()
        assert "ostname mismatch" in str(caught.value)
        assert [] == wire.requests


def test_a_user_name_in_the_address_is_sent_and_not_shown(
    server: EmbeddedOpenBao, admin: hvac.Client, connect: Connect, keys: KeySet, secrets: set[str], fails: Any
) -> None:
    """A proxy in front of Vault may ask for it. Messages show the address without it."""
    secrets.add("LEAK-7")
    address = server.address.replace("http://", "http://user:LEAK-7@")
    connect(address=address).create(keys)
    assert keys.key == connect(address=address).fetch().key
    with Wire(lambda _: [http(ANSWER, status="500 x")]) as wire:
        provider = connect(address=wire.address.replace("http://", "http://user:LEAK-7@"))
        with fails(KeyStoreUnavailableError) as caught:
            provider.fetch()
        assert wire.address in str(caught.value)
        assert b"authorization: basic" in wire.requests[0].lower()


@pytest.mark.parametrize("namespace", ["", "a\nX-Vault-Token: b", "tëam", "a b"])
def test_a_namespace_that_no_header_can_carry_is_a_value_error(namespace: str, connect: Connect) -> None:
    """It would be another header, or another namespace."""
    with pytest.raises(ValueError, match="namespace"):
        connect(namespace=namespace)
