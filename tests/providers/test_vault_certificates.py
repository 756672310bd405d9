"""Client certificates: of a server that requires one, and as the login itself. Real certificates on a real listener."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import pytest
import requests
import trustme
from cryptography.hazmat.primitives import serialization

from tests.providers.running import running
from voiceassist_db import config
from voiceassist_db.embedded.process import free_port
from voiceassist_db.errors import ConfigurationError, KeyStoreAuthenticationError, KeyStoreTLSError
from voiceassist_db.keys import KeyProvider, KeySet
from voiceassist_db.providers.vault import CertificateLogin, VaultKeyProvider

pytestmark = pytest.mark.wide

ROOT_TOKEN = "root-token-of-certificates"  # of a server in memory
Provide = Callable[..., KeyProvider]


@dataclass(frozen=True)
class Strict:
    """A server that requires a client certificate of an authority."""

    address: str
    authority: trustme.CA
    directory: Path

    def pair(self, authority: trustme.CA, name: str) -> dict[str, str]:
        """Return the settings of a new certificate and its key."""
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}-key.pem"
        made = authority.issue_cert("app.clinic.example", common_name=name)
        cert.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return {"VAULT_CLIENT_CERT": str(cert), "VAULT_CLIENT_KEY": str(key)}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    """The embedded server has no such listener, so the binary is started with one beside its own."""
    directory = tmp_path_factory.mktemp("certificates")
    authority, host = trustme.CA(), "127.0.0.1"
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    own = authority.issue_cert(host)
    own.private_key_pem.write_to_path(str(directory / "server-key.pem"))
    own.cert_chain_pems[0].write_to_path(str(directory / "server.pem"))
    port = free_port()
    listener = {
        "address": f"{host}:{port}",
        "cluster_address": f"{host}:{free_port()}",
        "tls_cert_file": str(directory / "server.pem"),
        "tls_key_file": str(directory / "server-key.pem"),
        "tls_client_ca_file": str(directory / "ca.pem"),
        "tls_require_and_verify_client_cert": True,
    }
    arguments = (
        "-dev",
        "-dev-no-store-token",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address={host}:{free_port()}",
    )
    with running(directory, "server", {"listener": {"tcp": listener}}, *arguments, until="server started!"):
        yield Strict(f"https://{host}:{port}", authority, directory)


@pytest.fixture(scope="module")
def strict_admin(strict: Strict) -> Iterator[hvac.Client]:
    """An administrator's client, with a certificate; ready when the key-value store can be used."""
    pair = strict.pair(strict.authority, "admin")
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(strict.directory / "ca.pem")
        session.cert = (pair["VAULT_CLIENT_CERT"], pair["VAULT_CLIENT_KEY"])
        client = hvac.Client(url=strict.address, token=ROOT_TOKEN, session=session)
        until = time.monotonic() + 60
        while (
            session.get(f"{strict.address}/v1/secret/config", headers={"X-Vault-Token": ROOT_TOKEN}).status_code != 200
        ):
            assert time.monotonic() < until
            time.sleep(0.05)
        yield client


@pytest.fixture
def provide(strict: Strict, strict_admin: hvac.Client, path: str, secrets: set[str]) -> Provide:
    """Make a provider of a path on that server from settings."""
    assert strict_admin is not None
    secrets.add(ROOT_TOKEN)

    def make(**settings: str) -> KeyProvider:
        given = {"VAULT_ADDR": strict.address, "VAULT_CACERT": str(strict.directory / "ca.pem")}
        return config.key_provider(given | {"VOICEASSIST_DB_VAULT_PATH": f"secret/{path}"} | settings)

    return make


def test_a_token_passes_with_a_certificate(strict: Strict, provide: Provide, keys: KeySet) -> None:
    """The certificate opens the connection, and the token does the rest."""
    settings = {"VAULT_TOKEN": ROOT_TOKEN, **strict.pair(strict.authority, "app")}
    provide(**settings).create(keys)
    assert keys.key == provide(**settings).fetch().key


def test_only_the_settings_of_the_provider_name_a_certificate(
    strict: Strict, provide: Provide, keys: KeySet, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    """Hvac reads the environment itself when it is imported: what it found there is not used."""
    pair = strict.pair(strict.authority, "app")
    monkeypatch.setattr("hvac.v1.VAULT_CLIENT_CERT", pair["VAULT_CLIENT_CERT"])
    monkeypatch.setattr("hvac.v1.VAULT_CLIENT_KEY", pair["VAULT_CLIENT_KEY"])
    with fails(KeyStoreTLSError):
        provide(VAULT_TOKEN=ROOT_TOKEN).create(keys)


def test_a_server_that_requires_a_certificate_says_so(provide: Provide, fails: Any) -> None:
    """The authority of the server is trusted, so VAULT_CACERT is not what is missing."""
    with fails(KeyStoreTLSError) as caught:
        provide(VAULT_TOKEN=ROOT_TOKEN).fetch()
    message = str(caught.value)
    assert "requires a client certificate that it trusts, and no client certificate was sent" in message
    assert "set VAULT_CLIENT_CERT and VAULT_CLIENT_KEY" in message
    assert "VAULT_CACERT" not in message


def test_a_certificate_of_another_authority_is_refused(strict: Strict, provide: Provide, fails: Any) -> None:
    """The message names the file that was refused."""
    pair = strict.pair(trustme.CA(), "stranger")
    with fails(KeyStoreTLSError) as caught:
        provide(VAULT_TOKEN=ROOT_TOKEN, **pair).fetch()
    assert f"the client certificate {pair['VAULT_CLIENT_CERT']} was refused" in str(caught.value)


def encrypt(key: Path) -> None:
    """Give a private key a pass phrase."""
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    key.write_bytes(loaded.private_bytes(*form, serialization.BestAvailableEncryption(b"phrase")))


@pytest.mark.parametrize("wrong", ["no certificate", "no key", "garbage", "another key", "pass phrase"])
def test_a_certificate_that_cannot_be_loaded_is_named(
    wrong: str, strict: Strict, provide: Provide, fails: Any, secrets: set[str]
) -> None:
    """Nothing is sent, no pass phrase is asked for, and both files are named."""
    pair = strict.pair(strict.authority, wrong.replace(" ", "-"))
    cert, key = Path(pair["VAULT_CLIENT_CERT"]), Path(pair["VAULT_CLIENT_KEY"])
    secrets.add(key.read_text().splitlines()[1])
    if wrong == "no certificate":
        cert.unlink()
    elif wrong == "no key":
        key.unlink()
    elif wrong == "garbage":
        key.write_text("no key")
    elif wrong == "another key":
        key.write_bytes(strict.authority.issue_cert("app.clinic.example").private_key_pem.bytes())
    else:
        encrypt(key)
    with fails(KeyStoreTLSError) as caught:
        provide(VAULT_TOKEN=ROOT_TOKEN, **pair).fetch()
    message = str(caught.value)
    assert all(
        each in message for each in (str(cert), str(key), "VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY", "pass phrase")
    )


ASK = """
from voiceassist_db import config
try:
    config.key_provider().fetch()
except Exception as error:
    print(type(error).__name__)
"""


def test_no_pass_phrase_is_asked_for_on_a_terminal(strict: Strict) -> None:
    """OpenSSL would ask there, and the process would wait. A process with a terminal of its own is needed to see it."""
    pair = strict.pair(strict.authority, "locked")
    key = Path(pair["VAULT_CLIENT_KEY"])
    encrypt(key)
    spawn = f"import pty, sys; pty.spawn([sys.executable, '-c', {ASK!r}])"
    settings = {"VAULT_ADDR": strict.address, "VAULT_TOKEN": ROOT_TOKEN, **pair}
    made = subprocess.run(  # our own interpreter and code
        [sys.executable, "-c", spawn],
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "KeyStoreTLSError" == made.stdout.strip()


# --- as the login ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["cert", "clinic/tls"])
def cert_mount(request: pytest.FixtureRequest, strict: Strict, strict_admin: hvac.Client, path: str) -> Iterator[str]:
    """The auth method `cert`, with a role for certificates of the name `app` that may use the path."""
    mount: str = request.param
    rule = f'path "secret/data/{path}" {{ capabilities = ["create", "read", "update"] }}'
    strict_admin.sys.create_or_update_policy("by-certificate", rule)
    strict_admin.sys.enable_auth_method("cert", path=mount)
    role = {"certificate": strict.authority.cert_pem.bytes().decode(), "allowed_common_names": ["app"]}
    strict_admin.adapter.post(f"/v1/auth/{mount}/certs/app", json=role | {"token_policies": ["by-certificate"]})
    yield mount
    strict_admin.sys.disable_auth_method(mount)


def test_a_certificate_is_a_login(strict: Strict, provide: Provide, cert_mount: str, keys: KeySet) -> None:
    """Without any other login, the certificate is the login, and its role gives the policies."""
    settings = {**strict.pair(strict.authority, "app"), "VAULT_AUTH_MOUNT": cert_mount}
    provide(**settings).create(keys)
    provider = provide(**settings)
    assert [keys.key] * 2 == [provider.fetch().key for _ in range(2)]


def test_a_certificate_that_no_role_admits_is_refused(
    strict: Strict, provide: Provide, cert_mount: str, fails: Any
) -> None:
    """The listener trusts it, and the method does not know its name."""
    with fails(KeyStoreAuthenticationError) as caught:
        provide(**strict.pair(strict.authority, "other"), VAULT_AUTH_MOUNT=cert_mount).fetch()
    message = str(caught.value)
    assert f"auth/{cert_mount}/login" in message
    assert "a role of the method admits the certificate VAULT_CLIENT_CERT" in message


def test_a_login_by_certificate_needs_one() -> None:
    """In code, it is a bad argument; in settings, a login that is missing."""
    with pytest.raises(ValueError, match="client_certificate"):
        VaultKeyProvider("https://vault.example", CertificateLogin())
    with pytest.raises(ConfigurationError, match="no login"):
        config.key_provider({"VAULT_ADDR": "https://vault.example"})
