"""Reading, creating and replacing keys in a real OpenBao."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any

import hvac
import pytest

from voiceassist_db.errors import (
    ConfigurationError,
    KeysDeletedError,
    KeysNotFoundError,
    KeyStoreConflictError,
    MalformedKeyError,
)
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.providers.vault import AppRoleLogin, KubernetesLogin, TokenLogin, VaultKeyProvider

Connect = Callable[..., VaultKeyProvider]
Stored = Callable[[], dict[str, Any]]

FOREIGN = {
    "redis_password": "pä$$ 'wörd'\n\t\u2028\U0001f511 <&> \\",
    "postgres_password": "",
    "port": 5432,
    "ratio": 0.1,
    "flags": [True, None, {"deep": "x"}],
    "KEY": "not ours: names are case-sensitive",
}


def text(key: Key | None) -> str:
    assert key is not None
    return key.expose().decode()


def rotated(old: KeySet) -> KeySet:
    return KeySet(
        version=old.version + 1,
        key=Key.generate(),
        previous_version=old.version,
        previous_key=old.key,
        index_key=Key.generate(),
        previous_index_key=old.index_key,
    )


def put(admin: hvac.Client, path: str, fields: dict[str, Any]) -> None:
    admin.secrets.kv.v2.create_or_update_secret(path, fields)


def test_created_keys_are_fetched_again(connect: Connect, keys: KeySet, stored: Stored) -> None:
    """What goes in comes out, in the fields and forms that the design names, with KV's version as the revision."""
    connect().create(keys)
    fetched = connect().fetch()
    assert (keys.key, keys.index_key, 1, 1) == (fetched.key, fetched.index_key, fetched.version, fetched.revision)
    assert {"key": text(keys.key), "key_version": "1", "index_key": text(keys.index_key)} == stored()


def test_a_rotation_is_stored_and_finished(connect: Connect, keys: KeySet, stored: Stored) -> None:
    """All six fields survive the round trip, and those that are None afterwards leave the secret."""
    provider = connect()
    provider.create(keys)
    both = rotated(keys)
    provider.replace(provider.fetch(), both)
    fetched = provider.fetch()
    assert 2 == fetched.revision
    assert (both.versions(), both.index_key) == (fetched.versions(), fetched.index_key)
    assert both.previous_index_key == fetched.previous_index_key
    provider.replace(fetched, KeySet(version=2, key=both.key, index_key=both.index_key))
    assert {"key", "key_version", "index_key"} == set(stored())


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_with_only_a_key_is_version_1(
    ending: str, connect: Connect, admin: hvac.Client, path: str, keys: KeySet
) -> None:
    """``vault kv put … key=@file`` leaves a newline, which does not become part of the key, and no other field."""
    put(admin, path, {"key": text(keys.key) + ending})
    assert KeySet(version=1, key=keys.key, revision=1, databases="") == connect().fetch()


@pytest.mark.parametrize("form", [int, str, lambda number: f" {number}\n"], ids=["int", "str", "padded"])
def test_versions_may_be_numbers_or_strings(
    form: Callable[[int], Any], connect: Connect, admin: hvac.Client, path: str, keys: KeySet
) -> None:
    """The API stores numbers, ``vault kv put`` strings: both are read."""
    fields = {"key": text(keys.key), "key_version": form(12), "previous_key": text(keys.index_key)}
    put(admin, path, {**fields, "previous_key_version": form(11)})
    assert [12, 11] == list(connect().fetch().versions())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key": ""}, "key is not a key"),
        ({"key": None}, "key is not a string"),
        ({"key": 7}, "key is not a string"),
        ({"key": base64.b64encode(b"LEAK" * 6).decode()}, "key is not a key"),
        ({"key": "LEAK" * 8}, "key is not a key"),
        ({"key": "LEAK-ä" * 8}, "key is not a key"),
        ({"index_key": "LEAK"}, "index_key is not a key"),
        ({"previous_key": "LEAK", "previous_key_version": 1}, "previous_key is not a key"),
        ({"previous_index_key": "LEAK"}, "previous_index_key is not a key"),
        ({"key_version": "LEAK"}, "key_version is not a number"),
        ({"key_version": ["LEAK"]}, "key_version is not a number"),
        ({"key_version": True}, "key_version is not a number"),
        ({"key_version": 1.5}, "key_version is not a number"),
        ({"key_version": "-1"}, "key_version is not a number"),
        ({"key_version": "٣"}, "key_version is not a number"),
        ({"key_version": "9" * 5000}, "key_version is not a number"),
        ({"key_version": None}, "key_version is not a number"),
        ({"key_version": 0}, "key_version must be 1 or more"),
        ({"previous_key_version": 1}, "previous_key and previous_key_version belong together"),
        ({"previous_key_version": "LEAK"}, "previous_key_version is not a number"),
    ],
)
def test_a_malformed_field_is_named_and_not_shown(
    change: dict[str, Any],
    named: str,
    connect: Connect,
    admin: hvac.Client,
    path: str,
    keys: KeySet,
    secrets: set[str],
    fails: Any,
) -> None:
    """Somebody mistyped a field: say which and where; its value, which may be most of a key, stays unseen."""
    secrets |= {"LEAK", base64.b64encode(b"LEAK" * 6).decode()}
    put(admin, path, {"key": text(keys.key), "key_version": "2", **change})
    with fails(MalformedKeyError) as caught:
        connect().fetch()
    assert f"in secret/{path}, {named}" in str(caught.value)


def test_a_previous_index_key_needs_an_index_key(
    connect: Connect, admin: hvac.Client, path: str, keys: KeySet, fails: Any
) -> None:
    """Without it the old index key would be taken for the one to write with."""
    put(admin, path, {"key": text(keys.key), "previous_index_key": text(keys.index_key)})
    with fails(MalformedKeyError):
        connect().fetch()


def test_fields_of_others_survive_create_and_replace(
    connect: Connect, admin: hvac.Client, path: str, keys: KeySet, stored: Stored
) -> None:
    """Redis's and PostgreSQL's passwords in the same secret are not ours to change."""
    put(admin, path, FOREIGN)
    provider = connect()
    provider.create(keys)
    provider.replace(provider.fetch(), rotated(keys))
    ours = {"key", "key_version", "previous_key", "previous_key_version", "index_key", "previous_index_key"}
    left = stored()
    assert ours == set(left) - set(FOREIGN)
    assert FOREIGN == {name: left[name] for name in FOREIGN}


def test_a_second_create_is_refused(connect: Connect, keys: KeySet, stored: Stored, fails: Any) -> None:
    """Keys are never overwritten: what they encrypted would be lost."""
    connect().create(keys)
    with fails(KeyStoreConflictError):
        connect().create(KeySet.generate())
    assert text(keys.key) == stored()["key"]


def test_a_key_that_cannot_be_read_is_not_overwritten_either(
    connect: Connect, admin: hvac.Client, path: str, keys: KeySet, stored: Stored, fails: Any
) -> None:
    """A mistyped key is a key: somebody must look at it."""
    put(admin, path, {"key": ""})
    with fails(KeyStoreConflictError):
        connect().create(keys)
    assert {"key": ""} == stored()


@pytest.mark.parametrize("foreign", [{}, {"redis_password": "x"}], ids=["nothing there", "fields of others there"])
def test_of_two_creates_at_once_exactly_one_wins(
    foreign: dict[str, Any], connect: Connect, admin: hvac.Client, path: str, stored: Stored, monkeypatch: Any
) -> None:
    """Both have read that there is no key before either writes: check-and-set decides, and the loser is told."""
    if foreign:
        put(admin, path, foreign)
    both_have_read = threading.Barrier(2)
    wins, losses = [], []

    def create() -> None:
        provider, made = connect(), KeySet.generate()
        write = provider._client.write  # there is no other place between the read and the write

        def write_late(*args: Any, **options: Any) -> None:
            both_have_read.wait(10)
            write(*args, **options)

        monkeypatch.setattr(provider._client, "write", write_late)
        try:
            provider.create(made)
            wins.append(text(made.key))
        except KeyStoreConflictError as error:
            losses.append(error)

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (1, 1) == (len(wins), len(losses))
    assert wins == [stored()["key"]]


def test_threads_may_share_a_provider(connect: Connect, keys: KeySet) -> None:
    """Eight threads fetch at once and get the same keys."""
    provider = connect()
    provider.create(keys)
    fetched: list[KeySet] = []
    threads = [threading.Thread(target=lambda: fetched.append(provider.fetch())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [provider.fetch()] * 8 == fetched


def test_a_replace_on_an_old_revision_is_refused(connect: Connect, keys: KeySet, stored: Stored, fails: Any) -> None:
    """Two rotations began from the same keys: the second to write must not destroy the first one's new key."""
    one, other = connect(), connect()
    one.create(keys)
    seen_by_one, seen_by_other = one.fetch(), other.fetch()
    winner = rotated(keys)
    one.replace(seen_by_one, winner)
    with fails(KeyStoreConflictError):
        other.replace(seen_by_other, rotated(keys))
    assert text(winner.key) == stored()["key"]


def test_a_replace_loses_to_a_write_after_its_own_read(
    connect: Connect, admin: hvac.Client, path: str, keys: KeySet, stored: Stored, fails: Any, monkeypatch: Any
) -> None:
    """An operator changed Redis's password between our read and our write: the server refuses, the password stays."""
    provider = connect()
    provider.create(keys)
    old = provider.fetch()
    write = provider._client.write  # there is no other place between the read and the write

    def write_late(*args: Any, **options: Any) -> None:
        put(admin, path, {**stored(), "redis_password": "new"})
        write(*args, **options)

    monkeypatch.setattr(provider._client, "write", write_late)
    with fails(KeyStoreConflictError):
        provider.replace(old, rotated(keys))
    assert ("new", text(keys.key)) == (stored()["redis_password"], stored()["key"])


@pytest.mark.parametrize("remove", ["delete", "destroy"])
def test_deleted_keys_are_neither_read_nor_overwritten(
    remove: str, connect: Connect, admin: hvac.Client, path: str, keys: KeySet, fails: Any
) -> None:
    """A deleted secret can be brought back; new keys in its place would hide that its data are lost."""
    provider = connect()
    provider.create(keys)
    old = provider.fetch()
    kv = admin.secrets.kv.v2
    if remove == "delete":
        kv.delete_latest_version_of_secret(path)
    else:
        kv.destroy_secret_versions(path, [1])
    for use in (provider.fetch, lambda: provider.create(keys), lambda: provider.replace(old, rotated(keys))):
        with fails(KeysDeletedError) as caught:
            use()
        command = "undelete -mount=secret -versions=1" if remove == "delete" else "rollback -mount=secret"
        assert f"vault kv {command}" in str(caught.value)
    assert [1] == [int(version) for version in kv.read_secret_metadata(path)["data"]["versions"]]
    if remove == "delete":
        kv.undelete_secret_versions(path, [1])
        assert keys.key == provider.fetch().key


def test_keys_may_be_created_anew_after_all_history_is_removed(
    connect: Connect, admin: hvac.Client, path: str, keys: KeySet
) -> None:
    """The command that the error names does what it promises."""
    connect().create(KeySet.generate())
    admin.secrets.kv.v2.delete_metadata_and_all_versions(path)
    connect().create(keys)
    assert keys.key == connect().fetch().key


@pytest.mark.parametrize("fields", [None, {"redis_password": "x"}], ids=["nothing", "no key"])
def test_missing_keys_are_not_found(
    fields: dict[str, Any] | None, connect: Connect, admin: hvac.Client, path: str, fails: Any
) -> None:
    """The first thing that a new user meets tells the command to run, and where it looked."""
    if fields is not None:
        put(admin, path, fields)
    with fails(KeysNotFoundError) as caught:
        connect().fetch()
    assert f"secret/{path}" in str(caught.value)
    assert "voiceassist-db init-keys" in str(caught.value)


def test_a_replace_of_what_is_gone_writes_nothing(
    connect: Connect, admin: hvac.Client, path: str, keys: KeySet, fails: Any
) -> None:
    """A rotation does not recreate a secret that somebody removed."""
    provider = connect()
    provider.create(keys)
    old = provider.fetch()
    admin.secrets.kv.v2.delete_metadata_and_all_versions(path)
    with fails(KeysNotFoundError):
        provider.replace(old, rotated(keys))
    with fails(KeysNotFoundError):
        provider.fetch()


def test_a_namespace_has_its_own_keys(
    connect: Connect, admin: hvac.Client, keys: KeySet, path: str, fails: Any
) -> None:
    """The header reaches the server: the same path in a namespace is another secret, and a wrong name is told."""
    name = f"team-{path[-8:]}"
    admin.sys.create_namespace(name)
    admin.adapter.namespace = name
    try:
        admin.sys.enable_secrets_engine("kv", "secret", options={"version": "2"})
    finally:
        admin.adapter.namespace = None
    connect(namespace=name).create(keys)
    assert keys.key == connect(namespace=name).fetch().key
    with fails(KeysNotFoundError) as caught:
        connect().fetch()
    assert "init-keys" in str(caught.value)
    with fails(KeysNotFoundError) as caught:
        connect(namespace="nobody").fetch()
    assert "no namespace nobody" in str(caught.value)


def test_mount_and_path_may_have_slashes_around_them(connect: Connect, path: str, keys: KeySet) -> None:
    """``/secret/`` and ``secret`` are one place, as for Vault's own tools."""
    connect().create(keys)
    assert keys.key == connect(mount="/secret/", path=f"/{path}/").fetch().key


def test_reprs_show_where_and_no_secret(connect: Connect, path: str) -> None:
    """Objects in a log line or a traceback tell the place alone, without a password in the address."""
    provider = connect(address="https://user:hunter2@vault.example:8200/")
    assert f"<VaultKeyProvider secret/{path} at https://vault.example:8200>" == repr(provider)
    for login in (TokenLogin("hunter2"), AppRoleLogin("hunter2", "hunter2"), KubernetesLogin("app")):
        assert "hunter2" not in repr(login)
        assert "hunter2" not in f"{login}"
        assert "hunter2" not in repr(vars(connect(login)))


@pytest.mark.parametrize("address", ["", "vault:8200", "127.0.0.1:8200", "ftp://vault", "https://", "http://a:port"])
def test_an_address_that_is_none_is_refused_at_once(address: str, connect: Connect) -> None:
    """A forgotten ``https://`` is a setting's error, found before anything is sent."""
    with pytest.raises(ConfigurationError, match="VAULT_ADDR"):
        connect(address=address)


@pytest.mark.parametrize("bad", [{"mount": "/"}, {"path": ""}, {"timeout_s": 0.0}])
def test_bad_arguments_are_value_errors(bad: dict[str, Any], connect: Connect) -> None:
    """An empty mount would address another API of the server."""
    with pytest.raises(ValueError, match="must"):
        connect(**bad)
