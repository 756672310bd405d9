"""Other ways to log in: auth methods at other mounts, JWT and OIDC, and a token in a file."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hvac
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from voiceassist_db import config
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.errors import ConfigurationError, KeyStoreAuthenticationError, KeyStoreForbiddenError
from voiceassist_db.keys import KeyProvider, KeySet
from voiceassist_db.providers.vault import (
    AgentLogin,
    CertificateLogin,
    JwtLogin,
    KubernetesLogin,
    TokenFileLogin,
    VaultKeyProvider,
)

Connect = Callable[..., VaultKeyProvider]
NewToken = Callable[..., str]
Provide = Callable[..., KeyProvider]


@pytest.fixture
def provide(server: EmbeddedOpenBao, path: str) -> Provide:
    """Make a provider for the path from settings, which name the login."""

    def make(**settings: str) -> KeyProvider:
        given = {"VAULT_ADDR": server.address, "VOICEASSIST_DB_VAULT_PATH": f"secret/{path}"}
        return config.key_provider(given | settings)

    return make


@pytest.fixture(autouse=True)
def stored_keys(connect: Connect, keys: KeySet) -> None:
    """Each test begins with keys at the path."""
    connect().create(keys)


@pytest.fixture
def auth_mount(admin: hvac.Client, policy: str) -> Iterator[Callable[[str], str]]:
    """Enable an auth method at a mount with slashes, which no other test has."""
    made: list[str] = []

    def make(method: str) -> str:
        made.append(f"clinic/{policy[-8:]}/{method}")
        admin.sys.enable_auth_method(method, path=made[-1])
        return made[-1]

    yield make
    for mount in made:
        admin.sys.disable_auth_method(mount)


@pytest.mark.parametrize("form", ["{}", "auth/{}", "/auth/{}/"])
def test_an_app_role_may_be_at_another_mount(
    form: str, provide: Provide, admin: hvac.Client, policy: str, auth_mount: Any, keys: KeySet, secrets: set[str]
) -> None:
    """The setting takes the mount as `vault auth list` prints it, and as policies have it."""
    mount = auth_mount("approle")
    approle = admin.auth.approle
    approle.create_or_update_approle("app", token_policies=[policy], mount_point=mount)
    role_id = approle.read_role_id("app", mount_point=mount)["data"]["role_id"]
    secret_id = approle.generate_secret_id("app", mount_point=mount)["data"]["secret_id"]
    secrets |= {role_id, secret_id}
    login = {"VAULT_ROLE_ID": role_id, "VAULT_SECRET_ID": secret_id}
    assert keys.key == provide(**login, VAULT_AUTH_MOUNT=form.format(mount)).fetch().key


def test_a_login_at_the_wrong_mount_names_it(provide: Provide, secrets: set[str], fails: Any) -> None:
    """Vault answers 403 or 404 to it, as to a wrong secret id. The message has the path that was asked."""
    secrets |= {"LEAK-1", "LEAK-2"}
    provider = provide(VAULT_ROLE_ID="LEAK-1", VAULT_SECRET_ID="LEAK-2", VAULT_AUTH_MOUNT="auth/no/where")
    with fails(KeyStoreAuthenticationError) as caught:
        provider.fetch()
    message = str(caught.value)
    assert all(each in message for each in ("at auth/no/where/login", "VAULT_AUTH_MOUNT", "VAULT_SECRET_ID"))


# --- JWT -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signer() -> rsa.RSAPrivateKey:
    """The key of an identity provider."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def signed(signer: rsa.RSAPrivateKey, **claims: Any) -> str:
    """Return a JWT (RFC 7519) of a CI job, signed by RS256."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    now = int(time.time())
    usual = {"iss": "https://ci.example", "sub": "job:1", "aud": "vault", "iat": now, "nbf": now, "exp": now + 3600}
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, usual | claims)]
    text = ".".join(map(encoded, parts))
    return f"{text}.{encoded(signer.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


@pytest.fixture(params=["jwt", "oidc"])
def jwt_mount(
    request: pytest.FixtureRequest, admin: hvac.Client, auth_mount: Any, policy: str, signer: rsa.RSAPrivateKey
) -> str:
    """A method of either name that knows the signer's public key, with the role `app` for the project `clinic`."""
    mount: str = auth_mount(request.param)
    public = signer.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    admin.adapter.post(f"/v1/auth/{mount}/config", json={"jwt_validation_pubkeys": [public.decode()]})
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "token_policies": [policy]}
    admin.adapter.post(f"/v1/auth/{mount}/role/app", json=role | {"bound_claims": {"project": "clinic"}})
    return mount


def test_a_jwt_logs_in(
    provide: Provide, jwt_mount: str, signer: rsa.RSAPrivateKey, keys: KeySet, tmp_path: Path, secrets: set[str]
) -> None:
    """The token of its file, newline and all, becomes a Vault token; the file is read again for the next login."""
    file = tmp_path / "jwt"
    jwt = signed(signer, project="clinic")
    secrets.add(jwt)
    file.write_text(jwt + "\n")
    settings = {"VAULT_JWT_ROLE": "app", "VAULT_JWT_FILE": str(file), "VAULT_AUTH_MOUNT": jwt_mount}
    assert keys.key == provide(**settings).fetch().key


@pytest.mark.wide
@pytest.mark.parametrize("wrong", ["claim", "expired", "signer", "audience", "role"])
@pytest.mark.parametrize("jwt_mount", ["jwt"], indirect=True)
def test_a_jwt_that_is_not_admitted_is_refused(
    wrong: str,
    provide: Provide,
    jwt_mount: str,
    signer: rsa.RSAPrivateKey,
    tmp_path: Path,
    secrets: set[str],
    fails: Any,
) -> None:
    """The message names the settings, the file and the mount, and shows nothing of the token."""
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048) if wrong == "signer" else signer
    claims: dict[str, dict[str, Any]] = {
        "claim": {"project": "hotel"},
        "expired": {"exp": int(time.time()) - 3600, "iat": int(time.time()) - 7200, "nbf": int(time.time()) - 7200},
        "audience": {"aud": "elsewhere"},
    }
    jwt = signed(other, **{"project": "clinic", **claims.get(wrong, {})})
    secrets |= {jwt, *jwt.split(".")[1:]}
    file = tmp_path / "jwt"
    file.write_text(jwt)
    role = "other" if wrong == "role" else "app"
    with fails(KeyStoreAuthenticationError) as caught:
        provide(VAULT_JWT_ROLE=role, VAULT_JWT_FILE=str(file), VAULT_AUTH_MOUNT=jwt_mount).fetch()
    message = str(caught.value)
    assert all(each in message for each in (f"auth/{jwt_mount}/login", f"VAULT_JWT_ROLE ({role})", str(file)))


@pytest.mark.wide
def test_a_token_of_an_oidc_provider_logs_in(
    server: EmbeddedOpenBao,
    provide: Provide,
    admin: hvac.Client,
    auth_mount: Any,
    policy: str,
    keys: KeySet,
    tmp_path: Path,
    secrets: set[str],
) -> None:
    """OpenBao is an OIDC provider too: it signs the token, and the method finds the key by OIDC discovery."""
    issuer = f"{server.address}/v1/identity/oidc"
    admin.adapter.post("/v1/identity/oidc/config", json={"issuer": server.address})
    admin.adapter.post(f"/v1/identity/oidc/key/{policy}", json={"allowed_client_ids": ["*"]})
    admin.adapter.post(f"/v1/identity/oidc/role/{policy}", json={"key": policy, "client_id": "clinic"})
    mint = f"{policy}-mint"
    admin.sys.create_or_update_policy(mint, f'path "identity/oidc/token/{policy}" {{ capabilities = ["read"] }}')
    userpass = auth_mount("userpass")
    admin.auth.userpass.create_or_update_user("job", password="p", policies=[mint], mount_point=userpass)
    user = hvac.Client(url=server.address, session=admin.session)
    user.auth.userpass.login("job", password="p", mount_point=userpass)
    jwt = user.adapter.get(f"/v1/identity/oidc/token/{policy}")["data"]["token"]
    secrets |= {jwt, user.token}
    mount = auth_mount("oidc")
    admin.adapter.post(f"/v1/auth/{mount}/config", json={"oidc_discovery_url": issuer})
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["clinic"], "token_policies": [policy]}
    admin.adapter.post(f"/v1/auth/{mount}/role/app", json=role)
    file = tmp_path / "jwt"
    file.write_text(jwt)
    settings = {"VAULT_JWT_ROLE": "app", "VAULT_JWT_FILE": str(file), "VAULT_AUTH_MOUNT": mount}
    assert keys.key == provide(**settings).fetch().key


def test_a_jwt_file_that_cannot_be_read_is_named(provide: Provide, tmp_path: Path, fails: Any) -> None:
    """Whatever writes it has not run yet."""
    file = tmp_path / "jwt"
    with fails(KeyStoreAuthenticationError) as caught:
        provide(VAULT_JWT_ROLE="app", VAULT_JWT_FILE=str(file)).fetch()
    assert f"the JWT {file} cannot be read: correct VAULT_JWT_FILE" in str(caught.value)


# --- a token in a file -----------------------------------------------------------------------------------------------


def test_a_token_file_is_read_and_its_token_renewed(
    provide: Provide, new_token: NewToken, keys: KeySet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As with VAULT_TOKEN, its time is looked up once."""
    file = tmp_path / "token"
    file.write_text(new_token(ttl="1h") + "\n")
    provider = provide(VAULT_TOKEN_FILE=str(file))
    assert [keys.key] * 2 == [provider.fetch().key for _ in range(2)]
    assert 1 == caplog.text.count("lookup-self HTTP")


def test_a_replaced_token_file_is_noticed(
    provide: Provide, admin: hvac.Client, new_token: NewToken, keys: KeySet, tmp_path: Path
) -> None:
    """A sink replaces the file when the old token is about to expire: the process goes on without a restart."""
    file, after = tmp_path / "token", tmp_path / "after"
    old = new_token()
    file.write_text(old)
    provider = provide(VAULT_TOKEN_FILE=str(file))
    provider.fetch()
    admin.auth.token.revoke(old)
    after.write_text(new_token())
    after.replace(file)
    assert keys.key == provider.fetch().key


def test_a_token_file_that_is_replaced_during_a_request_is_read_again(
    provide: Provide, new_token: NewToken, keys: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request carried the old token, which the server no longer accepts."""
    file = tmp_path / "token"
    file.write_text("hvs.expired")
    provider = provide(VAULT_TOKEN_FILE=str(file))
    assert isinstance(provider, VaultKeyProvider)
    read = provider._client.read  # there is no other place between the token and the request

    def replaced_before(token: Any, **options: Any) -> Any:
        monkeypatch.undo()
        file.write_text(new_token())
        return read(token, **options)

    monkeypatch.setattr(provider._client, "read", replaced_before)
    assert keys.key == provider.fetch().key


def test_a_bad_token_in_a_file_names_the_file(provide: Provide, tmp_path: Path, secrets: set[str], fails: Any) -> None:
    """VAULT_TOKEN is not what must be set anew."""
    secrets.add("hvs.LEAKLEAK")
    file = tmp_path / "token"
    file.write_text("hvs.LEAKLEAK")
    with fails(KeyStoreAuthenticationError) as caught:
        provide(VAULT_TOKEN_FILE=str(file)).fetch()
    assert f"Write a new one to {file} (VAULT_TOKEN_FILE)" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"LEAK-\xff", "cannot be read"),
        (b'{"token":"LEAK-1"}', "holds a wrapped or encrypted token: remove wrap_ttl and dh_type"),
        (b"LEAK 1", "holds characters that no token has"),
    ],
)
def test_a_token_file_without_a_plain_token_is_told(
    content: bytes | None, told: str, provide: Provide, tmp_path: Path, secrets: set[str], fails: Any
) -> None:
    """Nothing is sent, and nothing of the file is shown."""
    secrets.add("LEAK")
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with fails(KeyStoreAuthenticationError) as caught:
        provide(VAULT_TOKEN_FILE=str(file)).fetch()
    assert told in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_s_token_without_the_policy_is_forbidden(
    provide: Provide, new_token: NewToken, tmp_path: Path, fails: Any
) -> None:
    """The token is good: the policy is what is missing."""
    file = tmp_path / "token"
    file.write_text(new_token(policies=["elsewhere"]))
    with fails(KeyStoreForbiddenError):
        provide(VAULT_TOKEN_FILE=str(file)).fetch()


# --- settings --------------------------------------------------------------------------------------------------------

ADDRESS = {"VAULT_ADDR": "https://vault.example"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "VAULT_ADDR is set, but no login: set VAULT_TOKEN, VAULT_TOKEN_FILE"),
        ({"VAULT_JWT_ROLE": "app"}, "VAULT_JWT_ROLE is set without VAULT_JWT_FILE"),
        ({"VAULT_TOKEN": "x", "VAULT_CLIENT_CERT": "c.pem"}, "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY belong together"),
        ({"VAULT_TOKEN": "x", "VAULT_CLIENT_KEY": "k.pem"}, "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY belong together"),
        ({"VAULT_KUBERNETES_ROLE": "app", "VAULT_AUTH_MOUNT": "/"}, "VAULT_AUTH_MOUNT must be the mount"),
        ({"VAULT_KUBERNETES_ROLE": "app", "VAULT_AUTH_MOUNT": "a/../b"}, "VAULT_AUTH_MOUNT must be the mount"),
        ({"VAULT_AGENT_ADDR": "https://a", "ENCRYPTION_KEY": "x"}, "are both set"),
        ({"VAULT_TOKEN": "x", "VAULT_NAMESPACE": "ä"}, "namespace must be visible ASCII"),
    ],
)
def test_settings_that_do_not_fit_are_a_configuration_error(settings: dict[str, str], told: str) -> None:
    """Nothing is guessed, and nothing is sent."""
    with pytest.raises(ConfigurationError, match=told):
        config.key_provider(ADDRESS | settings)


@pytest.mark.parametrize(
    ("settings", "login"),
    [
        ({"VAULT_TOKEN_FILE": "/t", "VAULT_ROLE_ID": "r", "VAULT_SECRET_ID": "s"}, TokenFileLogin(Path("/t"))),
        ({"VAULT_KUBERNETES_ROLE": "app"}, KubernetesLogin("app")),
        ({"VAULT_KUBERNETES_ROLE": "app", "VAULT_AUTH_MOUNT": "k8s/eu"}, KubernetesLogin("app", mount="k8s/eu")),
        ({"VAULT_JWT_ROLE": "app", "VAULT_JWT_FILE": "/j"}, JwtLogin("app", Path("/j"))),
        (
            {"VAULT_JWT_ROLE": "app", "VAULT_JWT_FILE": "/j", "VAULT_AUTH_MOUNT": "auth/ci/"},
            JwtLogin("app", Path("/j"), "ci"),
        ),
        ({"VAULT_AGENT_ADDR": "http://127.0.0.1:8100"}, AgentLogin()),
        ({"VAULT_CLIENT_CERT": "/c", "VAULT_CLIENT_KEY": "/k"}, CertificateLogin()),
        ({"VAULT_CLIENT_CERT": "/c", "VAULT_CLIENT_KEY": "/k", "VAULT_AUTH_MOUNT": "tls"}, CertificateLogin("tls")),
        ({"VAULT_CLIENT_CERT": "/c", "VAULT_CLIENT_KEY": "/k", "VAULT_TOKEN_FILE": "/t"}, TokenFileLogin(Path("/t"))),
    ],
)
def test_the_first_login_of_the_documented_order_is_taken(settings: dict[str, str], login: object) -> None:
    """README.md lists them in this order. A client certificate and an agent are the login only where there is no other."""
    provider = config.key_provider(ADDRESS | settings)
    assert isinstance(provider, VaultKeyProvider)
    assert login == provider._client.place.login
