"""Where the secret is: mounts with slashes, paths that were copied from a policy, and messages that can be pasted."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import hvac
import pytest

from voiceassist_db import config
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.errors import (
    ConfigurationError,
    KeysNotFoundError,
    KeyStoreError,
    KeyStoreForbiddenError,
    VoiceAssistDBError,
)
from voiceassist_db.keys import KeyProvider, KeySet
from voiceassist_db.providers.vault import VaultKeyProvider

From = Callable[..., KeyProvider]
Connect = Callable[..., VaultKeyProvider]
NewToken = Callable[..., str]

NO_HEADERS: dict[str, str] = {}


@pytest.fixture
def from_environment(server: EmbeddedOpenBao) -> From:
    """Make a provider from settings, as commands do."""

    def make(path: str, **settings: str) -> KeyProvider:
        given = {"VAULT_ADDR": server.address, "VAULT_TOKEN": server.root_token, "VOICEASSIST_DB_VAULT_PATH": path}
        return config.key_provider(given | settings)

    return make


@pytest.fixture
def top() -> str:
    """The first part of a mount that no other test has."""
    return f"teams-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def mounted(admin: hvac.Client, top: str) -> Iterator[str]:
    """A KV v2 engine at a path with slashes."""
    mount = f"{top}/clinic/kv"
    admin.sys.enable_secrets_engine("kv", mount, options={"version": "2"})
    yield mount
    admin.sys.disable_secrets_engine(mount)


@pytest.fixture
def limited(admin: hvac.Client, new_token: NewToken, top: str) -> Iterator[Callable[..., str]]:
    """Make a token that one policy text permits something, and `default` to look itself up."""

    def make(policy: str, **options: Any) -> str:
        admin.sys.create_or_update_policy(top, policy)
        return new_token(policies=[top], **options)

    yield make
    admin.sys.delete_policy(top)


def policy_in(error: VoiceAssistDBError) -> str:
    """Return the policy text that a message tells to paste."""
    found = re.search(r'`(path "[^"]*" \{ capabilities = \[[^]]*\] \})`', str(error))
    assert found is not None
    return found[1]


def stored_at(admin: hvac.Client, mount: str, path: str) -> dict[str, Any]:
    """Return the fields of a secret, read by the administrator."""
    fields: dict[str, Any] = admin.secrets.kv.v2.read_secret_version(
        path, mount_point=mount, raise_on_deleted_version=True
    )["data"]["data"]
    return fields


@pytest.mark.parametrize("secret", ["x", "voiceassist/encryption", "data"])
def test_a_mount_may_have_slashes(
    secret: str, from_environment: From, admin: hvac.Client, mounted: str, keys: KeySet
) -> None:
    """The server says where the mount ends. The keys are where `vault kv get -mount=MOUNT PATH` finds them."""
    from_environment(f"{mounted}/{secret}").create(keys)
    assert keys.key == from_environment(f"/{mounted}/{secret}/").fetch().key
    assert keys.key.expose().decode() == stored_at(admin, mounted, secret)["key"]


def test_the_commands_of_a_remedy_name_the_mount_of_the_server(
    from_environment: From, mounted: str, keys: KeySet
) -> None:
    """`vault kv rollback -mount=` needs the mount itself, and not the first part of the path."""
    provider = from_environment(f"{mounted}/x")
    assert isinstance(provider, VaultKeyProvider)
    provider.create(keys)
    assert f"-mount={mounted} -version=1 x" in provider.restoring(1)


def test_the_mount_is_asked_for_once(
    from_environment: From, mounted: str, keys: KeySet, caplog: pytest.LogCaptureFixture
) -> None:
    """Later requests are one each, as before."""
    from_environment(f"{mounted}/x").create(keys)
    provider = from_environment(f"{mounted}/x")
    caplog.clear()
    for _ in range(3):
        provider.fetch()
    assert 1 == caplog.text.count("/v1/sys/internal/ui/mounts/")
    assert 3 == caplog.text.count(f"/v1/{mounted}/data/x")


def test_a_mount_of_one_part_costs_no_further_request(
    from_environment: From, connect: Connect, path: str, keys: KeySet, caplog: pytest.LogCaptureFixture
) -> None:
    """Vault receives two requests a second from a process: a third one would delay every start."""
    connect().create(keys)
    provider = from_environment(f"secret/{path}")
    caplog.clear()
    provider.fetch()
    sent = re.findall(r'"(?:GET|POST) (\S+) HTTP', caplog.text)
    assert [f"/v1/secret/data/{path}", "/v1/auth/token/lookup-self"] == sent


def test_a_policy_for_the_secret_alone_is_enough(
    from_environment: From, mounted: str, keys: KeySet, limited: Callable[..., str]
) -> None:
    """The question for the mount needs no right of its own."""
    from_environment(f"{mounted}/x").create(keys)
    token = limited(f'path "{mounted}/data/x" {{ capabilities = ["read"] }}', no_default_policy=True)
    assert keys.key == from_environment(f"{mounted}/x", VAULT_TOKEN=token).fetch().key


def test_a_missing_policy_is_printed_and_can_be_pasted(
    from_environment: From, mounted: str, keys: KeySet, limited: Callable[..., str], fails: Any
) -> None:
    """Each message names what is missing next. With both policies pasted, keys are made and read."""
    token = limited(f'path "{mounted}/data/other" {{ capabilities = ["read"] }}')
    provider = from_environment(f"{mounted}/x", VAULT_TOKEN=token)
    with fails(KeyStoreForbiddenError) as caught:
        provider.fetch()
    assert f'path "{mounted}/data/x" {{ capabilities = ["read"] }}' == policy_in(caught.value)
    limited(policy_in(caught.value))
    with fails(KeyStoreForbiddenError) as caught:
        provider.create(keys)
    assert f'path "{mounted}/data/x" {{ capabilities = ["create", "read", "update"] }}' == policy_in(caught.value)
    limited(policy_in(caught.value))
    provider.create(keys)
    assert keys.key == provider.fetch().key


def test_a_login_that_may_not_see_the_mount_is_told_where_data_belongs(
    from_environment: From, mounted: str, limited: Callable[..., str], fails: Any
) -> None:
    """The server does not name its mounts then: the message says that the policy depends on it."""
    token = limited('path "elsewhere/*" { capabilities = ["read"] }')
    with fails(KeyStoreForbiddenError) as caught:
        from_environment(f"{mounted}/x", VAULT_TOKEN=token).fetch()
    message = str(caught.value)
    assert "or no KV engine is mounted there" in message
    assert (
        f"`data/` follows the mount of the engine, which may be longer than {mounted.split('/', maxsplit=1)[0]}"
        in message
    )
    assert "vault secrets list" in message


def test_a_missing_mount_is_said_of_the_whole_path(
    from_environment: From, top: str, admin: hvac.Client, keys: KeySet, fails: Any
) -> None:
    """The command that the message prints makes the engine, after which the keys can be made."""
    path = f"{top}/clinic/encryption"
    for use in (from_environment(path).fetch, lambda: from_environment(path).create(keys)):
        with fails(KeysNotFoundError) as caught:
            use()
        assert f"no KV engine of version 2 at any part of {path}" in str(caught.value)
        assert f"`vault secrets enable -path={top} -version=2 kv`" in str(caught.value)
    admin.sys.enable_secrets_engine("kv", top, options={"version": "2"})
    from_environment(path).create(keys)
    assert keys.key == from_environment(path).fetch().key
    admin.sys.disable_secrets_engine(top)


def test_an_engine_of_version_1_is_named_and_never_written(
    from_environment: From, top: str, admin: hvac.Client, keys: KeySet, fails: Any
) -> None:
    """It has no check-and-set. The command that upgrades it is the one to paste."""
    mount = f"{top}/old/kv"
    admin.sys.enable_secrets_engine("kv", mount, options={"version": "1"})
    for use in (from_environment(f"{mount}/x").fetch, lambda: from_environment(f"{mount}/x").create(keys)):
        with fails(KeysNotFoundError) as caught:
            use()
        assert f"at the mount {mount}: the engine there has version 1" in str(caught.value)
        assert f"`vault kv enable-versioning {mount}`" in str(caught.value)
    with pytest.raises(hvac.exceptions.InvalidPath):
        admin.secrets.kv.v1.list_secrets("", mount_point=mount)
    admin.sys.disable_secrets_engine(mount)


def test_a_path_that_is_the_mount_alone_is_no_secret(
    from_environment: From, mounted: str, keys: KeySet, fails: Any
) -> None:
    """The secret's own path is missing."""
    with fails(KeysNotFoundError) as caught:
        from_environment(mounted).create(keys)
    assert f"such as {mounted}/voiceassist/encryption" in str(caught.value)


# --- copied from a policy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["data", pytest.param("metadata", marks=pytest.mark.wide)])
@pytest.mark.parametrize("slashes", [False, True], ids=["secret", "a mount with slashes"])
def test_a_path_of_a_policy_is_refused_and_never_created(
    part: str, slashes: bool, from_environment: From, admin: hvac.Client, mounted: str, keys: KeySet, fails: Any
) -> None:
    """The keys would be at a place that no policy and no colleague looks for. The message has the right setting."""
    mount, secret = (mounted if slashes else "secret"), f"copied/{uuid.uuid4().hex}"
    provider = from_environment(f"{mount}/{part}/{secret}")
    with fails(ConfigurationError) as refused:
        provider.create(keys)
    with fails(KeysNotFoundError) as caught:
        provider.fetch()
    for error in (refused, caught):
        assert str(error.value).endswith(f"set VOICEASSIST_DB_VAULT_PATH to {mount}/{secret}")
    for path in (secret, f"{part}/{secret}"):
        with pytest.raises(hvac.exceptions.InvalidPath):
            stored_at(admin, mount, path)


def test_a_path_of_a_policy_is_told_to_a_login_of_that_policy(
    from_environment: From, mounted: str, limited: Callable[..., str], fails: Any
) -> None:
    """The policy is right and the setting is not: no further policy is asked for."""
    token = limited(f'path "{mounted}/data/x" {{ capabilities = ["create", "read", "update"] }}')
    with fails(KeyStoreForbiddenError) as caught:
        from_environment(f"{mounted}/data/x", VAULT_TOKEN=token).fetch()
    assert str(caught.value).endswith(f"set VOICEASSIST_DB_VAULT_PATH to {mounted}/x")


@pytest.mark.wide
def test_keys_that_are_at_such_a_path_already_stay_readable(
    from_environment: From, admin: hvac.Client, mounted: str, keys: KeySet
) -> None:
    """An earlier release created them there. They can be read and rotated."""
    fields = {"key": keys.key.expose().decode(), "key_version": "1"}
    admin.secrets.kv.v2.create_or_update_secret("data/x", fields, mount_point=mounted)
    provider = from_environment(f"{mounted}/data/x")
    fetched = provider.fetch()
    assert keys.key == fetched.key
    provider.replace(fetched, KeySet(version=1, key=keys.key, index_key=keys.index_key))
    assert keys.index_key == provider.fetch().index_key


def test_a_mount_that_is_called_data_is_no_policy(
    from_environment: From, admin: hvac.Client, top: str, keys: KeySet
) -> None:
    """The server knows it as a mount, so `data/` is part of its name."""
    admin.sys.enable_secrets_engine("kv", f"{top}/data", options={"version": "2"})
    from_environment(f"{top}/data/x").create(keys)
    assert keys.key.expose().decode() == stored_at(admin, f"{top}/data", "x")["key"]
    provider = from_environment(f"{top}/data/x")
    assert isinstance(provider, VaultKeyProvider)
    assert keys.key == provider.fetch().key
    assert f"-mount={top}/data -version=1 x" in provider.restoring(1)
    admin.sys.disable_secrets_engine(f"{top}/data")


def test_a_mount_of_a_caller_that_is_none_is_refused(connect: Connect, path: str, keys: KeySet, fails: Any) -> None:
    """``mount="secret/data"`` would store the keys below `secret/data/data/`."""
    with fails(KeysNotFoundError) as caught:
        connect(mount="secret/data").create(keys)
    assert "has no mount secret/data: its mount secret holds" in str(caught.value)


@pytest.mark.parametrize("path", ["secret", "secret//x", "secret/../sys/x", "secret/./x", "", "/"])
def test_a_path_that_names_another_place_is_refused(path: str, from_environment: From, connect: Connect) -> None:
    """HTTP clients resolve dots and drop slashes, so the request would go elsewhere."""
    with pytest.raises(ConfigurationError, match="VOICEASSIST_DB_VAULT_PATH must be MOUNT/PATH"):
        from_environment(path)
    with pytest.raises(ValueError, match="must not be empty"):
        connect(mount=None, path=path)


@pytest.mark.wide
def test_a_server_may_only_say_where_the_path_is_split(connect: Connect, stand_in: Any, fails: Any) -> None:
    """Another mount than a part of the path is no answer of Vault's. It is invented here: a real server does not say it."""
    missing = (404, "application/json", '{"errors": ["no handler for route"]}', NO_HEADERS)
    for found in ("secret/other/", "sys/", "", 7):
        body = json.dumps({"data": {"path": found, "options": {"version": "2"}}})
        named = (200, "application/json", body, NO_HEADERS)
        address = stand_in(lambda asked, _, named=named: named if "/sys/" in asked else missing)
        with fails(KeyStoreError) as caught:
            connect(mount=None, path="secret/x/y", address=address).fetch()
        assert "not as Vault does" in str(caught.value)
