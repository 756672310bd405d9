"""Logging in, again, and keeping a token alive."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hvac
import pytest
import trustme

from tests.clock import Clock
from voiceassist_db.errors import KeyStoreAuthenticationError, KeyStoreForbiddenError
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import AppRoleLogin, KubernetesLogin, TokenLogin, VaultKeyProvider, tokens

Connect = Callable[..., VaultKeyProvider]
NewToken = Callable[..., str]
NewRole = Callable[..., AppRoleLogin]


@pytest.fixture
def new_role(admin: hvac.Client, policy: str, secrets: set[str]) -> NewRole:
    """Make an AppRole that may use the path, with options of the API, and return a login of it."""

    def make(**options: Any) -> AppRoleLogin:
        approle = admin.auth.approle
        approle.create_or_update_approle(policy, **{"token_policies": [policy], **options})
        role_id = approle.read_role_id(policy)["data"]["role_id"]
        secret_id = approle.generate_secret_id(policy)["data"]["secret_id"]
        secrets.add(secret_id)
        return AppRoleLogin(role_id, secret_id)

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the provider takes for the time, while the server goes by its own."""
    clock = Clock(time.monotonic())
    monkeypatch.setattr("voiceassist_db.providers.vault.tokens.time", clock)
    return clock


@pytest.fixture(autouse=True)
def stored_keys(connect: Connect, keys: KeySet) -> None:
    """Each test begins with keys at the path."""
    connect().create(keys)


def logins(caplog: pytest.LogCaptureFixture) -> int:
    messages = [record.getMessage() for record in caplog.records]
    return sum("POST /v1/auth/" in message and "/login HTTP" in message for message in messages)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_app_role_logs_in_once_and_late(
    connect: Connect, new_role: NewRole, keys: KeySet, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is sent before keys are wanted, and one login serves many requests."""
    provider = connect(new_role(token_ttl="60s"))
    assert 0 == logins(caplog)
    fetched = [provider.fetch() for _ in range(3)]
    provider.replace(fetched[-1], keys)
    assert [keys.key] * 3 == [each.key for each in fetched]
    assert 1 == logins(caplog)


def test_threads_share_one_login(connect: Connect, new_role: NewRole, caplog: pytest.LogCaptureFixture) -> None:
    """A pool of workers that starts at once does not log in a hundred times."""
    provider = connect(new_role(token_ttl="60s"))
    threads = [threading.Thread(target=provider.fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 == logins(caplog)


def test_a_login_is_repeated_before_the_token_expires(
    connect: Connect, new_role: NewRole, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """With less than a third of its time left there is a new token, before the server refuses the old one."""
    provider = connect(new_role(token_ttl="60s"))
    provider.fetch()
    clock.sleep(39)
    provider.fetch()
    assert 1 == logins(caplog)
    clock.sleep(2)
    provider.fetch()
    assert 2 == logins(caplog)
    assert " 403 " not in caplog.text


def test_a_revoked_token_is_replaced_once(
    connect: Connect, admin: hvac.Client, new_role: NewRole, keys: KeySet, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator revoked the tokens of all logins, for reads and for writes: the next request succeeds."""
    provider = connect(new_role())
    old = provider.fetch()
    admin.sys.revoke_prefix("auth/approle/login")
    assert old == provider.fetch()
    admin.sys.revoke_prefix("auth/approle/login")
    provider.replace(old, keys)
    assert 3 == logins(caplog)


def test_a_role_without_the_policy_is_forbidden_and_does_not_log_in_again(
    connect: Connect, new_role: NewRole, caplog: pytest.LogCaptureFixture, fails: Any
) -> None:
    """Another login would give the same policies: each further fetch is one request, until the token is 10 seconds old."""
    provider = connect(new_role(token_policies=["elsewhere"]))
    for _ in range(3):
        with fails(KeyStoreForbiddenError):
            provider.fetch()
    assert 1 == logins(caplog)


def test_a_role_that_was_given_its_policy_later_logs_in_again(
    connect: Connect, new_role: NewRole, keys: KeySet, clock: Clock, fails: Any
) -> None:
    """A token keeps the policies of its login, so that only another one brings the new policy."""
    provider = connect(new_role(token_policies=["elsewhere"]))
    with fails(KeyStoreForbiddenError):
        provider.fetch()
    new_role()
    with fails(KeyStoreForbiddenError):
        provider.fetch()
    clock.sleep(tokens.RELOGIN_AFTER_S)
    assert keys.key == provider.fetch().key


@pytest.mark.parametrize("wrong", ["role_id", "secret_id", "mount"])
def test_a_wrong_app_role_is_an_authentication_error(
    wrong: str, connect: Connect, new_role: NewRole, secrets: set[str], fails: Any
) -> None:
    """Whichever part is wrong, the server does not say which, and neither part is shown."""
    good = new_role()
    secrets |= {good.role_id, "LEAK"} if wrong != "mount" else {good.role_id}
    parts = {"role_id": good.role_id, "secret_id": good.secret_id, "mount": good.mount, wrong: "LEAK"}
    with fails(KeyStoreAuthenticationError) as caught:
        connect(AppRoleLogin(**parts)).fetch()
    assert "refused the login" in str(caught.value)


def test_a_token_lives_on_where_no_new_one_is_to_be_had(
    connect: Connect,
    admin: hvac.Client,
    new_role: NewRole,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    fails: Any,
) -> None:
    """A secret id that was good for one login: warn while the token works, and fail when it does not."""
    provider = connect(new_role(token_ttl="60s", secret_id_num_uses=1))
    provider.fetch()
    clock.sleep(41)
    provider.fetch()
    assert 1 == len(warnings(caplog))
    assert "no new Vault token" in warnings(caplog)[0]
    admin.sys.revoke_prefix("auth/approle/login")
    with fails(KeyStoreAuthenticationError):
        provider.fetch()


@pytest.mark.wide
def test_a_given_token_is_renewed_beyond_its_time(
    connect: Connect, new_token: NewToken, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked about when half of its time has passed, is renewed then, and works when its first time is over."""
    provider = connect(TokenLogin(new_token(period="12s")))
    provider.fetch()
    provider.fetch()
    assert (0, 1) == (caplog.text.count("renew-self HTTP"), caplog.text.count("lookup-self HTTP"))
    time.sleep(7)
    provider.fetch()
    provider.fetch()
    assert (1, 2) == (caplog.text.count("renew-self HTTP"), caplog.text.count("lookup-self HTTP"))
    time.sleep(7)
    provider.fetch()
    assert [] == warnings(caplog)


def test_a_young_token_is_not_renewed(connect: Connect, new_token: NewToken, caplog: pytest.LogCaptureFixture) -> None:
    """With most of its time left there is nothing to do, and it is asked about once."""
    provider = connect(TokenLogin(new_token(ttl="1h")))
    provider.fetch()
    provider.fetch()
    assert (0, 1) == (caplog.text.count("renew-self HTTP"), caplog.text.count("lookup-self HTTP"))


@pytest.mark.parametrize("options", [{"ttl": "1h", "renewable": False}, {"ttl": "1h", "type": "batch"}])
def test_a_token_that_cannot_be_renewed_is_left_alone(
    options: dict[str, Any], connect: Connect, new_token: NewToken, caplog: pytest.LogCaptureFixture
) -> None:
    """Its maker decided so: it is asked about once, and is no reason to warn."""
    provider = connect(TokenLogin(new_token(**options)))
    provider.fetch()
    provider.fetch()
    assert (0, 1) == (caplog.text.count("renew-self HTTP"), caplog.text.count("lookup-self HTTP"))
    assert [] == warnings(caplog)


@pytest.mark.wide
def test_a_token_at_its_longest_life_warns_while_it_works(
    connect: Connect, new_token: NewToken, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewal cannot pass the longest life: whoever reads the log has time to set a new token."""
    provider = connect(TokenLogin(new_token(ttl="12s", explicit_max_ttl="12s")))
    provider.fetch()
    time.sleep(7)  # 5 s left: less than half, and the server rounds to seconds
    provider.fetch()
    assert ["longest life" in message for message in warnings(caplog)] == [True]


def test_a_token_that_may_not_look_itself_up_works_with_one_warning(
    connect: Connect, new_token: NewToken, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the policy `default` it can neither be asked about nor renewed, but it can read."""
    provider = connect(TokenLogin(new_token(no_default_policy=True)))
    provider.fetch()
    provider.fetch()
    assert ["cannot be renewed" in message for message in warnings(caplog)] == [True]


def service_account_token() -> str:
    claims = {
        "iss": "kubernetes/serviceaccount",
        "kubernetes.io/serviceaccount/namespace": "clinic",
        "kubernetes.io/serviceaccount/service-account.name": "voiceassist",
        "kubernetes.io/serviceaccount/service-account.uid": "0f1e2d3c",
        "sub": "system:serviceaccount:clinic:voiceassist",
        "nbf": int(time.time()) - 60,
        "exp": int(time.time()) + 3600,
    }
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "kid": "1"}, claims)] + [b"signature" * 28]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.fixture
def kubernetes(admin: hvac.Client, policy: str, stand_in: Any, secrets: set[str], tmp_path: Path) -> KubernetesLogin:
    """A login for OpenBao's real Kubernetes method, which asks a stand-in for the cluster's TokenReview API."""
    jwt = service_account_token()
    secrets.add(jwt)
    user = {"username": "system:serviceaccount:clinic:voiceassist", "uid": "0f1e2d3c", "groups": []}
    review = {"kind": "TokenReview", "status": {"authenticated": True, "user": user}}
    api = "/apis/authentication.k8s.io/v1/tokenreviews"
    cluster = stand_in(lambda path, _: (201 if path == api else 404, "application/json", json.dumps(review), {}))
    mount = f"clinic/kubernetes-{policy[-8:]}"
    admin.sys.enable_auth_method("kubernetes", path=mount)
    authority = trustme.CA().cert_pem.bytes().decode()  # required, and unused: the stand-in speaks plain HTTP
    admin.auth.kubernetes.configure(
        cluster, kubernetes_ca_cert=authority, token_reviewer_jwt=jwt, disable_local_ca_jwt=True, mount_point=mount
    )
    admin.auth.kubernetes.create_role("app", "voiceassist", "clinic", ttl="60s", policies=[policy], mount_point=mount)
    file = tmp_path / "token"
    file.write_text(jwt + "\n")
    return KubernetesLogin("app", file, mount)


def test_a_service_account_logs_in(
    connect: Connect, kubernetes: KubernetesLogin, keys: KeySet, caplog: pytest.LogCaptureFixture
) -> None:
    """The pod's token, read from its file, becomes a Vault token that is used again."""
    provider = connect(kubernetes)
    assert keys.key == provider.fetch().key
    provider.fetch()
    assert 1 == logins(caplog)


def test_a_service_account_of_another_role_is_refused(
    connect: Connect, kubernetes: KubernetesLogin, fails: Any
) -> None:
    """No such role: an authentication error without the pod's token."""
    with fails(KeyStoreAuthenticationError):
        connect(KubernetesLogin("other", kubernetes.jwt_file, kubernetes.mount)).fetch()


@pytest.mark.parametrize("content", [None, b"LEAK-\xff\xfe"])
def test_a_service_account_token_that_cannot_be_read_is_told(
    content: bytes | None, connect: Connect, tmp_path: Path, secrets: set[str], fails: Any
) -> None:
    """Outside of a pod there is no such file; the message names it."""
    secrets.add("LEAK")
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with fails(KeyStoreAuthenticationError) as caught:
        connect(KubernetesLogin("app", file)).fetch()
    assert str(file) in str(caught.value)
