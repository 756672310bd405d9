"""A secret that was rolled back by hand takes no key from a database that joined later: earlier versions say who that is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import VaultServer
from tests.members.conftest import Clinic, NewClinic
from tests.members.test_fleet import here, index_rotated, listed, retired, rotated
from tests.members.world import STEPS, walk
from voiceassist_db.errors import (
    ConfigurationError,
    RotationError,
)
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import forget
from voiceassist_db.keyring.history import completed
from voiceassist_db.keyring.listing import enlist
from voiceassist_db.keyring.members import (
    members,
)
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import plan, retire, rotate, rotate_index_key

RollBack = Callable[[int], None]


@pytest.fixture
def roll_back(vault: VaultServer, vault_path: str) -> RollBack:
    """A function that does what `vault kv rollback` does: the whole secret, with every field."""
    mount, _, path = vault_path.partition("/")

    def do(revision: int) -> None:
        earlier = vault.ask("GET", f"{mount}/data/{path}?version={revision}")["data"]["data"]
        vault.ask("POST", f"{mount}/data/{path}", {"data": earlier})

    return do


def test_a_database_that_joined_later_keeps_its_keys(
    new_clinic: NewClinic, secret: VaultKeyProvider, roll_back: RollBack, caplog: pytest.LogCaptureFixture
) -> None:
    """The list of an earlier version lacks it. The first write of a tool lists it again, and both keys stay for it."""
    first = new_clinic()
    before = secret.fetch()
    second = new_clinic()
    roll_back(before.revision)
    assert set(listed(secret)) == {first.name}
    rotated(first)
    assert f"the secret lists again: {second.name}." in caplog.text
    assert set(listed(secret)) == {first.name, second.name}
    assert retire(first.engine, first.keys, grace_days=0).needed_by == (second.name,)
    assert rotate_index_key(first.engine, first.keys).needed_by == (second.name,)
    second.assert_readable()
    for operation in (rotated, retired, index_rotated):
        operation(second)
    held = secret.fetch()
    assert (held.previous_key, held.previous_index_key) == (None, None)
    for clinic in (first, second):
        clinic.assert_verified()


@pytest.mark.parametrize("operation", [retired, pytest.param(index_rotated, marks=pytest.mark.wide)])
def test_a_rollback_right_before_a_key_ends(
    new_clinic: NewClinic, secret: VaultKeyProvider, roll_back: RollBack, operation: Callable[[Clinic], object]
) -> None:
    """The key has been rotated, and then the list of that time comes back. A dry run tells of the database, too."""
    first = new_clinic()
    rotated(first)
    before = secret.fetch()
    second = new_clinic()
    roll_back(before.revision)
    operation(first)
    assert set(listed(secret)) == {first.name, second.name}
    second.assert_readable()
    if operation is retired:
        with pytest.raises(RotationError, match=f"stays in the key store for {second.name}"):
            plan(first.engine, first.keys)
    second.assert_verified()


@pytest.mark.wide
@pytest.mark.parametrize("writes", ["init-keys", "enlist"])
def test_every_tool_that_writes_completes_the_list(
    new_clinic: NewClinic, secret: VaultKeyProvider, roll_back: RollBack, writes: str
) -> None:
    """Vault forgets old versions, so that the first write must do it, whichever tool it is of."""
    first = new_clinic()
    before = secret.fetch()
    second = new_clinic()
    roll_back(before.revision)
    if writes == "init-keys":
        with first.engine.begin() as connection:
            done = initialise_keys(first.provider, connection)
        assert set(done.databases.values()) == {first.name, second.name}
    else:
        assert enlist(secret, [here(first)]) == members(secret.fetch())
    assert set(listed(secret)) == {first.name, second.name}


def test_a_database_that_was_forgotten_stays_so(
    new_clinic: NewClinic, secret: VaultKeyProvider, roll_back: RollBack
) -> None:
    """Earlier versions list it, and it does not come back. A rollback to one of them lists it, until it is forgotten again."""
    first, second = new_clinic(), new_clinic()
    both = secret.fetch()
    forget(secret, here(first), second.name)
    roll_back(both.revision)
    assert set(listed(secret)) == {first.name, second.name}
    forget(secret, here(first), second.name)
    assert set(listed(secret)) == {first.name}
    rotated(first)
    assert retire(first.engine, first.keys, grace_days=0).removed
    with pytest.raises(ConfigurationError, match=f"no database is called {second.name}"):
        forget(secret, here(first), second.name)


@pytest.mark.wide
def test_a_forgotten_database_may_come_back(new_clinic: NewClinic, secret: VaultKeyProvider) -> None:
    """Its own `init-keys` lists it again."""
    first, second = new_clinic(), new_clinic()
    forget(secret, here(first), second.name)
    with second.engine.begin() as connection:
        initialise_keys(second.provider, connection)
    assert set(listed(secret)) == {first.name, second.name}
    rotated(first)
    assert retire(first.engine, first.keys, grace_days=0).needed_by == (second.name,)


def test_a_new_key_does_not_take_the_number_of_another_database(
    new_clinic: NewClinic, secret: VaultKeyProvider, roll_back: RollBack
) -> None:
    """The secret of the time before a rotation comes back: a second key 2 would end all hope for the rows under the first one."""
    first, second = new_clinic(), new_clinic()
    before = secret.fetch()
    rotated(second)
    newest = secret.fetch()
    roll_back(before.revision)
    for command in (plan, rotate):
        with pytest.raises(
            RotationError, match=rf"{second.name} needs key version 2.*`vault kv rollback .*-version={newest.revision} "
        ):
            command(first.engine, first.keys)
    roll_back(newest.revision)
    rotated(first)
    for clinic in (first, second):
        retired(clinic)
        clinic.assert_readable()
        clinic.assert_verified()


@pytest.mark.wide
def test_a_rollback_is_told_before_a_retirement(
    new_clinic: NewClinic, secret: VaultKeyProvider, roll_back: RollBack
) -> None:
    """The secret of the last rotation comes back, with two keys. Its retirement would wait for weeks, and for a database that refuses."""
    first, second = new_clinic(), new_clinic()
    for clinic in (first, second):
        rotated(clinic)
    before = secret.fetch()
    for clinic in (first, second):
        retired(clinic)
    rotated(second)
    newest = secret.fetch()
    roll_back(before.revision)
    with pytest.raises(
        RotationError, match=rf"{second.name} needs key version 3.*`vault kv rollback .*-version={newest.revision} "
    ):
        plan(first.engine, first.keys)
    roll_back(newest.revision)
    rotated(first)
    for clinic in (first, second):
        retired(clinic)
        clinic.assert_verified()


@pytest.mark.wide
def test_a_fleet_that_was_rolled_back_with_its_secret(
    new_clinic: NewClinic, secret: VaultKeyProvider, new_provider: Callable[..., VaultKeyProvider], roll_back: RollBack
) -> None:
    """All rows are under the old key again, as the backups were: a copy of the secret, as the message says, is the way on."""
    first, second = new_clinic(), new_clinic()
    before = secret.fetch()
    started = rotate(second.engine, second.keys)
    assert started.to_version == 2
    roll_back(before.revision)
    with pytest.raises(RotationError, match="give them a copy of the secret at another path"):
        rotated(first)
    copy = new_provider("/copy")
    copy.create(secret.fetch())
    first.provider = copy
    rotated(first)
    first.assert_verified()


@pytest.mark.wide
def test_a_new_index_key_does_not_replace_that_of_another_database(
    new_clinic: NewClinic, secret: VaultKeyProvider, roll_back: RollBack
) -> None:
    """The same for the key of the search tokens."""
    first, second = new_clinic(), new_clinic()
    before = secret.fetch()
    index_rotated(second)
    newest = secret.fetch()
    roll_back(before.revision)
    with pytest.raises(
        RotationError,
        match=rf"{second.name} may need a newer blind-index key.*`vault kv rollback .*-version={newest.revision} ",
    ):
        index_rotated(first)
    roll_back(newest.revision)
    index_rotated(first)
    for clinic in (first, second):
        clinic.assert_readable()
        clinic.assert_verified()


@pytest.mark.wide
@pytest.mark.parametrize("gone", ["delete", "destroy"])
def test_versions_that_are_gone_tell_nothing(
    new_clinic: NewClinic,
    secret: VaultKeyProvider,
    roll_back: RollBack,
    vault: VaultServer,
    vault_path: str,
    gone: str,
) -> None:
    """Another version with the list is enough. Where none is left, `init-keys` there is what the runbook asks for."""
    first = new_clinic()
    before = secret.fetch()
    second = new_clinic()
    index_rotated(first)
    newest = secret.fetch().revision
    roll_back(before.revision)
    mount, _, path = vault_path.partition("/")
    for revisions, names in (
        ([newest], {first.name, second.name}),
        (range(before.revision + 1, newest + 1), {first.name}),
    ):
        vault_path_of = f"{mount}/{gone}/{path}"
        _send(vault, vault_path_of, list(revisions))
        held = secret.fetch()
        assert {each.name for each in members(completed(secret, held)).values()} == names


def _send(vault: VaultServer, path: str, revisions: list[int]) -> None:
    sent = requests.post(
        f"{vault.address}/v1/{path}",
        json={"versions": revisions},
        headers={"X-Vault-Token": vault.root_token},
        timeout=60,
    )
    assert sent.ok, sent.text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), max_size=14))
def test_whatever_is_done_by_hand_no_key_ends_too_early(steps: list[tuple[str, int]]) -> None:
    """Against what each database truly needs: it is listed, with at least that, and a key that it needs is in the secret."""
    walk(steps)
