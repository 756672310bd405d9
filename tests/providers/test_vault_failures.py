"""What a failing Vault looks like to a caller: the class, the advice, and no secret anywhere in it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hvac
import pytest
import trustme

from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.embedded.binaries import find_openbao
from voiceassist_db.embedded.process import free_port
from voiceassist_db.errors import (
    KeysNotFoundError,
    KeyStoreAuthenticationError,
    KeyStoreConflictError,
    KeyStoreError,
    KeyStoreForbiddenError,
    KeyStoreSealedError,
    KeyStoreTLSError,
    KeyStoreUnavailableError,
)
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider

Connect = Callable[..., VaultKeyProvider]
NewToken = Callable[..., str]

HTML = "<html>Service Unavailable</html>"


@pytest.fixture(scope="module")
def tls_server() -> Iterator[EmbeddedOpenBao]:
    """A server that speaks TLS with an authority of its own."""
    with EmbeddedOpenBao(tls=True) as running:
        yield running


def test_the_search_for_secrets_finds_one(fails: Any, secrets: set[str]) -> None:
    """All tests of failures lean on it: a secret in a frame's variable, or a chained error, must not pass."""
    secrets.add("LEAK")
    namespace: dict[str, Any] = {"error": KeyStoreError("x")}
    exec("def fail():\n    token = 'LE' + 'AK'\n    raise error", namespace)  # noqa: S102  # a frame outside of the tests
    with pytest.raises(AssertionError), fails(KeyStoreError):
        namespace["fail"]()
    with pytest.raises(AssertionError), fails(KeyStoreError):
        raise KeyStoreError("x") from ValueError("y")


def test_the_logs_are_really_recorded(connect: Connect, keys: KeySet, caplog: pytest.LogCaptureFixture) -> None:
    """The search for secrets in logs means nothing unless urllib3 logs at DEBUG: it logs paths."""
    connect().create(keys)
    assert "/v1/secret/data/test/" in caplog.text
    assert "urllib3.connectionpool" in {record.name for record in caplog.records}


def test_a_sealed_server_is_told_apart_and_works_again_once_unsealed(
    server: EmbeddedOpenBao, admin: hvac.Client, connect: Connect, keys: KeySet, fails: Any
) -> None:
    """A restart leaves Vault sealed: callers go on with the keys they have, and operators read what to do."""
    provider = connect()
    provider.create(keys)
    admin.sys.seal()
    try:
        for use in (provider.fetch, lambda: provider.create(keys), lambda: provider.replace(keys, keys)):
            with fails(KeyStoreSealedError) as caught:
                use()
            assert "vault operator unseal" in str(caught.value)
    finally:
        admin.sys.submit_unseal_key(server.unseal_key)
        until = time.monotonic() + 300
        while not (fetched := fetched_if_up(provider)) and time.monotonic() < until:
            time.sleep(0.05)
    assert fetched is not None
    assert keys.key == fetched.key


def fetched_if_up(provider: VaultKeyProvider) -> KeySet | None:
    try:
        return provider.fetch()
    except (KeyStoreSealedError, KeyStoreUnavailableError):
        return None


@pytest.fixture
def uninitialised(tmp_path: Path) -> Iterator[str]:
    """Address of a new server that nobody has initialised."""
    address = f"127.0.0.1:{free_port()}"
    listener = {"tcp": {"address": address, "tls_disable": True}}
    (tmp_path / "bao.json").write_text(json.dumps({"storage": {"inmem": {}}, "listener": listener}))
    command = [str(find_openbao()), "server", f"-config={tmp_path / 'bao.json'}"]
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as bao:
        assert bao.stdout is not None
        assert any("server started!" in line for line in bao.stdout)
        yield f"http://{address}"
        bao.kill()


def test_a_server_that_was_never_initialised_counts_as_sealed(uninitialised: str, connect: Connect, fails: Any) -> None:
    """A fresh Vault answers like a sealed one; ours starts initialised, so here the binary is started bare."""
    with fails(KeyStoreSealedError):
        connect(address=uninitialised).fetch()


def test_a_server_that_is_down_is_unavailable(connect: Connect, fails: Any) -> None:
    """Nobody listens on the port."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with fails(KeyStoreUnavailableError) as caught:
        connect(address=f"http://127.0.0.1:{port}").fetch()
    assert "cannot be reached" in str(caught.value)


def test_a_hung_server_is_unavailable_within_the_timeout(connect: Connect, fails: Any) -> None:
    """It accepts and never answers: without a timeout, every request of the application would hang with it."""
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        hung.listen()
        provider = connect(address=f"http://127.0.0.1:{hung.getsockname()[1]}", timeout_s=0.3)
        began = time.monotonic()
        with fails(KeyStoreUnavailableError) as caught:
            provider.fetch()
        assert time.monotonic() - began > 0.25
    assert "did not answer within 0.3 s" in str(caught.value)


def test_an_answer_cut_short_is_unavailable(connect: Connect, stand_in: Any, fails: Any) -> None:
    """The connection broke in the middle of the secret. The answer is invented: a real server finishes its own."""
    address = stand_in(lambda *_: (200, "application/json", '{"data', {"Content-Length": "1000"}))
    with fails(KeyStoreUnavailableError):
        connect(address=address, timeout_s=1).fetch()


def test_tls_works_with_the_authority(
    tls_server: EmbeddedOpenBao, connect: Connect, keys: KeySet, secrets: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ca_file is what counts: not the public authorities, and not what the environment tells requests."""
    secrets.add(tls_server.root_token)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    token = TokenLogin(tls_server.root_token)
    provider = connect(token, address=tls_server.address, ca_file=tls_server.ca_file)
    provider.create(keys)
    assert keys.key == provider.fetch().key


@pytest.mark.parametrize("authority", ["public", "another", "missing", "garbage"])
def test_a_certificate_that_is_not_trusted_is_refused(
    authority: str, tls_server: EmbeddedOpenBao, connect: Connect, tmp_path: Path, secrets: set[str], fails: Any
) -> None:
    """No token goes to a server that cannot prove itself, and the message names the setting."""
    secrets.add(tls_server.root_token)
    file = tmp_path / "ca.pem"
    if authority == "another":
        trustme.CA().cert_pem.write_to_path(str(file))
    elif authority == "garbage":
        file.write_text("-----BEGIN CERTIFICATE-----\nnone\n")
    ca_file = None if authority == "public" else file
    provider = connect(TokenLogin(tls_server.root_token), address=tls_server.address, ca_file=ca_file)
    with fails(KeyStoreTLSError) as caught:
        provider.fetch()
    assert "VAULT_CACERT" in str(caught.value)
    if authority in {"public", "another"}:
        assert "issuer certificate" in str(caught.value) or "signed" in str(caught.value)


def test_https_to_a_server_without_tls_is_a_tls_error(server: EmbeddedOpenBao, connect: Connect, fails: Any) -> None:
    """The port speaks plain HTTP."""
    with fails(KeyStoreTLSError):
        connect(address=server.address.replace("http://", "https://")).fetch()


def test_http_to_a_server_with_tls_tells_to_check_the_address(
    tls_server: EmbeddedOpenBao, connect: Connect, fails: Any
) -> None:
    """OpenBao closes the connection, others answer 400 in plain text: either way the scheme is worth a look."""
    with fails(KeyStoreUnavailableError) as caught:
        connect(address=tls_server.address.replace("https://", "http://")).fetch()
    assert "http or https" in str(caught.value)


def test_a_wrong_token_is_an_authentication_error(connect: Connect, secrets: set[str], fails: Any) -> None:
    """It never was a token of this server."""
    token = "s.LEAKLEAKLEAKLEAKLEAKLEAK"
    secrets.add(token)
    with fails(KeyStoreAuthenticationError) as caught:
        connect(TokenLogin(token)).fetch()
    assert "VAULT_TOKEN" in str(caught.value)


@pytest.mark.parametrize("token", ["", "LEAK\nLEAK", "LEAK-ä€"])
def test_a_token_that_no_header_can_carry_is_an_authentication_error(
    token: str, connect: Connect, secrets: set[str], fails: Any
) -> None:
    """Both requests and http.client put such a token into their own errors, which must not get through."""
    secrets.add("LEAK")
    with fails(KeyStoreAuthenticationError):
        connect(TokenLogin(token)).fetch()


def test_a_token_may_end_in_a_newline(connect: Connect, new_token: NewToken, keys: KeySet) -> None:
    """A file ends in one."""
    provider = connect(TokenLogin(new_token() + "\n"))
    provider.create(keys)
    assert keys.key == provider.fetch().key


def test_revoked_and_expired_tokens_are_authentication_errors(
    connect: Connect, admin: hvac.Client, new_token: NewToken, keys: KeySet, fails: Any
) -> None:
    """Both worked a moment ago; the server's 403 is the same as for a missing policy, and must not be taken for it."""
    connect().create(keys)
    expiring, revoked = new_token(ttl="1s", renewable=False), new_token()
    providers = [connect(TokenLogin(token)) for token in (expiring, revoked)]
    for provider in providers:
        provider.fetch()
    admin.auth.token.revoke(revoked)
    time.sleep(1.2)
    for provider in providers:
        with fails(KeyStoreAuthenticationError):
            provider.fetch()


def test_a_token_without_the_policy_is_forbidden(
    connect: Connect, new_token: NewToken, path: str, keys: KeySet, fails: Any
) -> None:
    """The token is good: the message names the path and the stanza that is missing."""
    provider = connect(TokenLogin(new_token(policies=["elsewhere"])))
    for use in (provider.fetch, lambda: provider.create(keys), lambda: provider.replace(keys, keys)):
        with fails(KeyStoreForbiddenError) as caught:
            use()
        assert f'path "secret/data/{path}" {{ capabilities = ["read"] }}' in str(caught.value)


def test_a_token_that_may_only_read_cannot_write(
    connect: Connect, admin: hvac.Client, new_token: NewToken, path: str, keys: KeySet, fails: Any
) -> None:
    """An application's token reads; the message to who rotates with it names what rotation needs."""
    admin.sys.create_or_update_policy(f"read-{path[-8:]}", f'path "secret/data/{path}" {{ capabilities = ["read"] }}')
    connect().create(keys)
    provider = connect(TokenLogin(new_token(policies=[f"read-{path[-8:]}"])))
    with fails(KeyStoreForbiddenError) as caught:
        provider.replace(provider.fetch(), KeySet(version=1, key=keys.key))
    assert '["create", "read", "update"]' in str(caught.value)


def test_the_advised_policy_is_enough(connect: Connect, new_token: NewToken, keys: KeySet) -> None:
    """Create, fetch and replace with a token that has the stanza of the message, and nothing else but `default`."""
    provider = connect(TokenLogin(new_token()))
    provider.create(keys)
    provider.replace(provider.fetch(), KeySet(version=1, key=keys.key))
    assert provider.fetch().index_key is None


def test_a_missing_mount_is_told_apart_from_a_missing_secret(connect: Connect, keys: KeySet, fails: Any) -> None:
    """``init-keys`` cannot help where no engine is."""
    provider = connect(mount="nomount")
    for use in (provider.fetch, lambda: provider.create(keys)):
        with fails(KeysNotFoundError) as caught:
            use()
        assert "vault secrets enable -path=nomount -version=2 kv" in str(caught.value)


@pytest.mark.parametrize("engine", ["kv", "transit"])
def test_another_engine_is_never_written(
    engine: str, connect: Connect, admin: hvac.Client, keys: KeySet, path: str, fails: Any
) -> None:
    """KV version 1 would store the request itself as a secret and check nothing."""
    mount = f"{engine}-{path[-8:]}"
    admin.sys.enable_secrets_engine(engine, mount, options={"version": "1"} if engine == "kv" else None)
    for use in (connect(mount=mount).fetch, lambda: connect(mount=mount).create(keys)):
        with fails(KeysNotFoundError) as caught:
            use()
        assert f"no KV engine of version 2 at the mount {mount}" in str(caught.value)
    if engine == "kv":
        with pytest.raises(hvac.exceptions.InvalidPath):
            admin.secrets.kv.v1.read_secret(f"data/{path}", mount_point=mount)


@pytest.mark.parametrize(
    ("status", "kind", "body", "expected"),
    [
        (500, "application/json", '{"errors":["internal error LEAK"]}', KeyStoreUnavailableError),
        (502, "text/html", HTML, KeyStoreUnavailableError),
        (503, "text/html", HTML, KeyStoreUnavailableError),
        (504, "text/html", HTML, KeyStoreUnavailableError),
        (429, "application/json", '{"errors":["request path rate limited"]}', KeyStoreUnavailableError),
        (501, "application/json", '{"errors":["not initialized"]}', KeyStoreSealedError),
        (503, "application/json", '{"errors":["Vault is sealed"]}', KeyStoreSealedError),
        (400, "text/plain", "Client sent an HTTP request to an HTTPS server.", KeyStoreError),
        (403, "text/html", "<html>LEAK</html>", KeyStoreError),
        (404, "text/html", "<html>LEAK</html>", KeyStoreError),
        (405, "application/json", '{"errors":["LEAK"]}', KeyStoreError),
        (400, "application/json", '["LEAK"]', KeyStoreError),
        (400, "application/json", '{"errors":[{"LEAK":1}]}', KeyStoreError),
        (400, "application/json", '{"errors":"LEAK"}', KeyStoreError),
        (200, "text/html", "<html>LEAK</html>", KeyStoreError),
        (200, "application/json", "[]", KeyStoreError),
        (200, "application/json", '{"data":{"data":{"key":"LEAK"}}}', KeysNotFoundError),
        (200, "application/json", '{"data":"LEAK"}', KeysNotFoundError),
    ],
)
def test_answers_that_a_real_server_cannot_be_made_to_give(
    status: int,
    kind: str,
    body: str,
    expected: type[KeyStoreError],
    connect: Connect,
    stand_in: Any,
    secrets: Any,
    fails: Any,
) -> None:
    """Proxies, load balancers and other servers on the port; what they say never gets into the error."""
    secrets.add("LEAK")
    with fails(expected):
        connect(address=stand_in(lambda *_: (status, kind, body, {}))).fetch()


def test_the_token_is_not_sent_after_a_redirect(connect: Connect, stand_in: Any, fails: Any) -> None:
    """Whoever answers at the address could send us, with the token, anywhere. Both servers are invented."""
    got: list[str] = []

    def catch(path: str, _: dict[str, str]) -> tuple[int, str, str, dict[str, str]]:
        got.append(path)
        return 200, "application/json", "{}", {}

    elsewhere = stand_in(catch)
    provider = connect(address=stand_in(lambda path, _: (307, "text/plain", "", {"Location": elsewhere + path})))
    with fails(KeyStoreError) as caught:
        provider.fetch()
    assert "redirects to another address" in str(caught.value)
    assert [] == got


def test_neither_the_environment_nor_the_home_directory_changes_a_request(
    server: EmbeddedOpenBao, connect: Connect, keys: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    """A proxy would break loopback and see tokens; ~/.vault-token belongs to a person, not to the login given here."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    connect().create(keys)
    monkeypatch.setenv("VAULT_TOKEN", server.root_token)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".vault-token").write_text(server.root_token)
    with fails(KeyStoreAuthenticationError):
        connect(TokenLogin("")).fetch()


def test_a_write_without_an_answer_says_that_its_outcome_is_unknown(
    connect: Connect, stand_in: Any, keys: KeySet, fails: Any
) -> None:
    """The connection may break after Vault has written: the caller must look. The answers are invented."""

    def answer(_: str, headers: dict[str, str]) -> tuple[int, str, str, dict[str, str]]:
        if "Content-Length" in headers:
            return 504, "text/html", HTML, {}
        body = {"data": {"data": {"x": "1"}, "metadata": {"version": 3}}}
        return 200, "application/json", json.dumps(body), {}

    with fails(KeyStoreUnavailableError) as caught:
        connect(address=stand_in(answer)).create(keys)
    assert "is not known" in str(caught.value)


def test_a_write_whose_answer_is_not_vaults_is_no_success(
    connect: Connect, stand_in: Any, keys: KeySet, fails: Any
) -> None:
    """Only an answer with the new version proves that the keys are stored. The answers are invented."""

    def answer(_: str, headers: dict[str, str]) -> tuple[int, str, str, dict[str, str]]:
        body = {"data": {"data": {}, "metadata": {"version": 3}}}
        return 200, "application/json", json.dumps({"ok": True} if "Content-Length" in headers else body), {}

    with fails(KeyStoreError):
        connect(address=stand_in(answer)).create(keys)


def test_a_conflict_is_only_what_check_and_set_says(connect: Connect, stand_in: Any, keys: KeySet, fails: Any) -> None:
    """Another refusal of a write, of the same status, is not an invitation to try again. The answers are invented."""
    messages = iter(["check-and-set parameter did not match the current version", "secret too large"])

    def answer(_: str, headers: dict[str, str]) -> tuple[int, str, str, dict[str, str]]:
        if "Content-Length" in headers:
            return 400, "application/json", json.dumps({"errors": [next(messages)]}), {}
        return 200, "application/json", json.dumps({"data": {"data": {}, "metadata": {"version": 3}}}), {}

    address = stand_in(answer)
    with fails(KeyStoreConflictError):
        connect(address=address).create(keys)
    with fails(KeyStoreError):
        connect(address=address).create(keys)
