"""A secret knows its databases: no key leaves it while one of them may need it, whatever happens on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
import requests
from sqlalchemy import URL, text

from tests.conftest import VaultServer, drop, plain
from tests.members.conftest import PATIENTS, Clinic, NewClinic
from tests.members.killing import mortal
from tests.rotation.test_states import roll_back
from voiceassist_db import create_engine
from voiceassist_db.errors import ConfigurationError, MalformedKeyError, NothingToDoError, RotationError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import Here, forget, registered_keys
from voiceassist_db.keyring import members as members_module
from voiceassist_db.keyring.members import (
    Member,
    done_with,
    done_with_index,
    joined,
    members,
    needing,
    registered_as,
)
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import plan, retire, rotate, rotate_index_key

Operation = Callable[[Clinic], object]


def rotated(clinic: Clinic) -> object:
    """Rotate, or finish the rotation."""
    return rotate(clinic.engine, clinic.keys)


def retired(clinic: Clinic) -> object:
    """Retire the previous key."""
    return retire(clinic.engine, clinic.keys, grace_days=0)


def index_rotated(clinic: Clinic) -> object:
    """Rotate the blind-index key, or finish its rotation."""
    return rotate_index_key(clinic.engine, clinic.keys)


def here(clinic: Clinic) -> Here:
    """Return who a database is."""
    return Here.known(clinic.engine)


def listed(secret: VaultKeyProvider) -> dict[str, Member]:
    """Return what the secret lists, by name."""
    return {each.name: each for each in members(secret.fetch()).values()}


def rows(clinic: Clinic) -> set[int]:
    """Return the versions that rows are under."""
    with clinic.engine.connect() as connection:
        return set(connection.execute(text("SELECT DISTINCT key_version FROM patient_data")).scalars())


def test_a_second_database_is_refused_unless_it_joins(new_clinic: NewClinic, secret: VaultKeyProvider) -> None:
    """Staging on production's secret: nothing is written anywhere, and the message names production and both ways out."""
    production, staging = new_clinic(), new_clinic(registers=False)
    before = secret.fetch()
    with (
        pytest.raises(
            ConfigurationError, match=r"(?s)VOICEASSIST_DB_VAULT_PATH.*`voiceassist-db init-keys --join`"
        ) as refused,
        staging.engine.begin() as connection,
    ):
        initialise_keys(staging.provider, connection)
    assert production.name in str(refused.value)
    for operation in (rotated, retired):
        with pytest.raises(RotationError, match="init-keys --join"):
            operation(staging)
    assert before == secret.fetch()
    with staging.engine.begin() as connection:
        assert registered_keys(connection) == {}
        done = initialise_keys(staging.provider, connection, join=True)
    assert set(done.databases.values()) == {production.name, staging.name}
    assert list(listed(secret)) == list(done.databases.values())
    with staging.engine.begin() as connection:  # and again, without --join
        assert initialise_keys(staging.provider, connection).registered == ()


def test_a_registration_that_is_not_committed(new_clinic: NewClinic, secret: VaultKeyProvider) -> None:
    """The key store lists the database already, and the next `init-keys` finds itself there: no key waits for one that never was."""
    first, second = new_clinic(), new_clinic(registers=False)
    with second.engine.connect() as connection:
        initialise_keys(second.provider, connection, join=True)
        connection.rollback()
        assert registered_keys(connection) == {}
    with second.engine.begin() as connection:
        done = initialise_keys(second.provider, connection)
    assert set(done.databases.values()) == {first.name, second.name}
    assert len(members(secret.fetch())) == 2


def test_one_pair_for_all_and_the_last_one_removes_the_key(fleet: list[Clinic], secret: VaultKeyProvider) -> None:
    """The first begins, the others continue; the key stays until the last has retired it, and each message says for whom."""
    first, second, third = fleet
    for clinic in fleet:
        rotated(clinic)
        assert list(secret.fetch().versions()) == [2, 1]
    for clinic, waits in ((first, {second.name, third.name}), (second, {third.name})):
        done = retire(clinic.engine, clinic.keys, grace_days=0)
        assert (done.removed, set(done.needed_by)) == (False, waits)
        assert list(secret.fetch().versions()) == [2, 1]
        with pytest.raises(RotationError, match="stays in the key store for"):
            plan(clinic.engine, clinic.keys)
    assert {each.oldest for each in listed(secret).values()} == {1, 2}
    again = retire(first.engine, first.keys, grace_days=0)  # a second time: nothing but the same answer
    assert (again.removed, again.needed_by) == (False, (third.name,))
    done = retire(third.engine, third.keys, grace_days=0)
    assert (done.removed, done.needed_by) == (True, ())
    assert list(secret.fetch().versions()) == [2]
    with pytest.raises(NothingToDoError):
        retired(first)
    for clinic in fleet:
        clinic.assert_readable()
        clinic.assert_verified()


def test_the_disaster_of_two_databases(new_clinic: NewClinic, secret: VaultKeyProvider) -> None:
    """One is rotated and retired, and the other lives on; then it is lost, and must be forgotten by name before its key goes."""
    kept, other = new_clinic(), new_clinic()
    rotated(kept)
    assert retire(kept.engine, kept.keys, grace_days=0).needed_by == (other.name,)
    other.assert_readable()
    other.assert_verified()
    assert rows(other) == {1}
    with pytest.raises(RotationError, match=other.name):
        rotated(kept)
    with pytest.raises(ConfigurationError, match="cannot be forgotten here"):
        forget(secret, here(other), other.name)
    with pytest.raises(ConfigurationError, match=other.name):
        forget(secret, here(kept), "clinic")
    other.assert_readable()
    removed, left = forget(secret, here(kept), other.name)
    assert (removed.name, [each.name for each in members(left).values()]) == (other.name, [kept.name])
    assert retire(kept.engine, kept.keys, grace_days=0).removed
    assert rotate(kept.engine, kept.keys).to_version == 3
    kept.assert_readable()


def test_a_secret_of_the_time_before_lists_each_database_that_rotates(
    fleet: list[Clinic],
    secret: VaultKeyProvider,
    new_provider: Callable[..., VaultKeyProvider],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Databases that share a secret without a list are added as they rotate; the first is told to look for others."""
    before = new_provider("/before")  # no earlier version of it has a list
    before.create(replace(secret.fetch(), databases=""))
    for clinic in fleet:
        clinic.provider = before
        with clinic.engine.begin() as connection:
            connection.execute(text("DELETE FROM database_identity"))
    with pytest.raises(RotationError, match="does not list this database"):  # it would take the key from the others
        index_rotated(fleet[0])
    for clinic in fleet:
        assert plan(clinic.engine, clinic.keys).to_version == 2
        rotated(clinic)
    assert set(listed(before)) == {each.name for each in fleet}
    assert caplog.text.count("lists from now on which databases use its keys") == 1
    assert not retire(fleet[0].engine, fleet[0].keys, grace_days=0).removed
    for clinic in fleet:
        clinic.assert_readable()


@pytest.mark.wide
def test_a_key_that_somebody_removed(new_clinic: NewClinic, secret: VaultKeyProvider) -> None:
    """A new key would take its slot: it is refused, and the message adds the key again from the history of the secret."""
    first, second = new_clinic(), new_clinic()
    rotated(first)
    retired(first)
    held = secret.fetch()
    secret.replace(held, replace(held, previous_version=None, previous_key=None))
    with pytest.raises(
        RotationError, match=rf"{second.name} needs key version 1: .*`vault kv rollback .*-version={held.revision} "
    ):
        rotated(first)
    lost = secret.fetch()
    secret.replace(lost, replace(held, revision=lost.revision))
    second.assert_readable()
    secret.replace(restored := secret.fetch(), replace(lost, revision=restored.revision))
    forget(secret, here(first), second.name)
    assert rotate(first.engine, first.keys).to_version == 3


def test_a_list_that_somebody_lost(new_clinic: NewClinic, secret: VaultKeyProvider) -> None:
    """No key is removed for a database that the list lacks: nobody knows then which others it lacks."""
    first, second = new_clinic(), new_clinic()
    rotated(first)
    for left in ("{}", json.dumps({str(here(second).id): {"name": "second", "oldest": 2}})):
        held = secret.fetch()
        secret.replace(held, replace(held, databases=left))
        with pytest.raises(RotationError, match=r"`voiceassist-db init-keys` here and in every other database"):
            retired(first)
        assert list(secret.fetch().versions()) == [2, 1]
    second.assert_readable()
    for clinic in (first, second):
        with clinic.engine.begin() as connection:
            initialise_keys(clinic.provider, connection)
    assert retire(first.engine, first.keys, grace_days=0).needed_by == (second.name,)
    second.assert_readable()


def test_the_blind_index_key_stays_for_all(fleet: list[Clinic], secret: VaultKeyProvider) -> None:
    """Searches find at every moment, in the databases that are done and in those that are not."""
    first, second, third = fleet
    for clinic, waits in ((first, {second.name, third.name}), (second, {third.name})):
        assert set(rotate_index_key(clinic.engine, clinic.keys).needed_by) == waits
        for each in fleet:
            each.assert_readable()
    with pytest.raises(NothingToDoError):
        rotate_index_key(first.engine, first.keys, resume_only=True)
    with pytest.raises(RotationError, match=rf"stays in the key store for {third.name}"):
        index_rotated(first)
    assert rotate_index_key(third.engine, third.keys).needed_by == ()
    assert secret.fetch().previous_index_key is None
    for each in fleet:
        each.assert_readable()
        each.assert_verified()


def test_a_database_that_joins_in_the_midst(new_clinic: NewClinic, secret: VaultKeyProvider) -> None:
    """It may need both keys, of each kind, and they stay for it."""
    first = new_clinic()
    rotated(first)
    held = secret.fetch()
    assert held.index_key is not None
    second = new_clinic()
    assert not retire(first.engine, first.keys, grace_days=0).removed
    retired(second)
    assert list(secret.fetch().versions()) == [2]
    for clinic in (first, second):
        clinic.assert_verified()


@pytest.mark.parametrize("operation", [rotated, index_rotated])
def test_all_begin_at_once(fleet: list[Clinic], secret: VaultKeyProvider, operation: Operation) -> None:
    """Several processes begin in several databases: they agree on one new key, and none fails."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(fleet))

    def begin(clinic: Clinic) -> None:
        barrier.wait()
        try:
            operation(clinic)
        except BaseException as error:  # noqa: BLE001  # it is asserted that there is none
            failures.append(error)

    threads = [threading.Thread(target=begin, args=(clinic,)) for clinic in fleet]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert max(secret.fetch().versions()) == (2 if operation is rotated else 1)
    for clinic in fleet:
        clinic.assert_readable()
        clinic.assert_verified()


CRITICAL = 6
"""The step of an operation at which the short form dies; the long form takes each."""


def run_again(operation: Operation, clinic: Clinic, before: KeySet) -> None:
    """Run an operation again, which may have died after all that it does in this database was done."""
    now = clinic.provider.fetch()
    if operation is index_rotated and now.previous_index_key is None and now.index_key != before.index_key:
        return  # it died after the end, and would begin the next rotation
    try:
        operation(clinic)
    except (NothingToDoError, RotationError) as done:
        assert isinstance(done, NothingToDoError) or "stays in the key store for" in str(done)  # noqa: PT017  # not every time


def die_at(step: int, fleet: list[Clinic], operations: list[Operation]) -> bool:
    """Let the process die at a step of each operation in each database, and run it again; say whether any died."""
    died = False
    for operation in operations:
        before = fleet[0].provider.fetch()
        for clinic in fleet:
            with mortal(clinic, step) as (seen, death):
                operation(seen)
            if death.came:
                died = True
                for each in fleet:
                    each.assert_readable()
                run_again(operation, clinic, before)
            for each in fleet:
                each.assert_readable()
    return died


def test_a_process_that_dies(fleet: list[Clinic], secret: VaultKeyProvider) -> None:
    """Whatever step a rotation or a retirement dies at, every row of every database can be read, and the next run ends it."""
    assert die_at(CRITICAL, fleet, [rotated, retired])
    assert list(secret.fetch().versions()) == [2]
    for clinic in fleet:
        clinic.assert_verified()


@pytest.mark.wide
@pytest.mark.parametrize("operations", [[rotated, retired], [index_rotated]])
@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_that_dies_at_any_step(
    fleet: list[Clinic], secret: VaultKeyProvider, operations: list[Operation], stride: int
) -> None:
    """The same at each step, or at every ninth, until no operation has so many."""
    step = 1
    while die_at(step, fleet, operations):
        held = secret.fetch()
        assert (held.previous_version, held.previous_index_key) == (None, None)
        step += stride
    print(f"died at {len(range(1, step, stride))} of {step - stride} steps")
    assert step > CRITICAL
    for clinic in fleet:
        clinic.assert_verified()


def test_a_list_that_somebody_spoiled(fleet: list[Clinic], secret: VaultKeyProvider) -> None:
    """Readers go on, and tools refuse, for they cannot know who needs a key."""
    for spoiled in (
        "[]",
        '{"a": 1}',
        "3",
        '{"00000000-0000-0000-0000-000000000000": {"name": "x", "oldest": "1"}}',
        "[" * 5000,
    ):
        held = secret.fetch()
        secret.replace(held, replace(held, databases=spoiled))
        fleet[0].assert_readable()
        for operation in (rotated, retired, index_rotated):
            with pytest.raises(MalformedKeyError, match="the field `databases`"):
                operation(fleet[0])
        with pytest.raises(MalformedKeyError, match="the field `databases`"), fleet[1].engine.begin() as connection:
            initialise_keys(secret, connection)


@pytest.mark.wide
@pytest.mark.parametrize("remedy", ["restore", "empty"])
def test_a_spoiled_list_is_repaired_as_the_message_says(
    new_clinic: NewClinic, secret: VaultKeyProvider, vault: VaultServer, vault_path: str, remedy: str
) -> None:
    """By the field of an earlier version, or by an empty one and `init-keys` in each database; then each key waits for both."""
    first, second = new_clinic(), new_clinic()
    sound = secret.fetch().databases
    secret.replace(secret.fetch(), replace(secret.fetch(), databases="spoiled"))
    with pytest.raises(
        MalformedKeyError, match=r"vault kv patch SECRET databases=-`.*vault kv patch SECRET databases=`"
    ):
        rotated(first)
    given = {"databases": sound if remedy == "restore" else ""}
    with requests.Session() as session:  # as `vault kv patch` sends it
        sent = session.patch(
            f"{vault.address}/v1/{vault_path.replace('/', '/data/', 1)}",
            json={"data": given},
            headers={"X-Vault-Token": vault.root_token, "Content-Type": "application/merge-patch+json"},
        )
    assert sent.ok
    if remedy == "empty":
        with pytest.raises(RotationError, match="init-keys"):
            index_rotated(first)
        for clinic in (first, second):
            with clinic.engine.begin() as connection:
                initialise_keys(secret, connection)
    assert set(listed(secret)) == {first.name, second.name}
    rotated(first)
    assert retire(first.engine, first.keys, grace_days=0).needed_by == (second.name,)
    for clinic in (first, second):
        clinic.assert_verified()


def test_a_list_may_be_an_object(fleet: list[Clinic], secret: VaultKeyProvider) -> None:
    """A tool that writes the secret as JSON may leave an object, which means the same as its text."""
    from voiceassist_db.providers.vault.answers import RawSecret
    from voiceassist_db.providers.vault.secret import key_set, with_keys

    held = secret.fetch()
    fields = with_keys(RawSecret(), held)
    fields.expose()["databases"] = json.loads(fields.expose()["databases"])
    assert members(key_set(fields, revision=1, where="here")) == members(held)


def test_what_a_database_needs_is_what_its_registry_says() -> None:
    """A backup of the time before a rotation is listed as done with keys that it needs again."""
    keys = replace(KeySet.generate(), version=2, previous_version=1, previous_key=Key.generate())
    keys = replace(keys, previous_index_key=Key.generate())
    assert keys.index_key is not None
    assert keys.previous_index_key is not None
    identity = uuid4()
    done = done_with_index(done_with(replace(keys, databases=""), Here(identity, "b"), 2), Here(identity, "b"))
    done = replace(
        done, **{each: getattr(keys, each) for each in ("previous_version", "previous_key", "previous_index_key")}
    )
    before = members(done)[identity]
    assert (before.oldest, before.is_done_with_index(keys)) == (2, True)
    index_keys = frozenset({registered_as(keys.previous_index_key)})
    for retired_, oldest in ((frozenset({1}), 2), (frozenset[int](), 1)):
        for index_retired, index in ((index_keys, before.index), (frozenset[bytes](), None)):
            there = Here(identity, "b", retired_, index_retired)
            assert members(joined(done, there))[identity] == Member("b", oldest, index)


@pytest.mark.wide
@pytest.mark.parametrize("tool", ["init-keys", "rotate", "index"])
def test_a_restored_database_keeps_its_keys(
    fleet: list[Clinic], secret: VaultKeyProvider, server_url: URL, tool: str
) -> None:
    """One is restored from before both rotations, and a tool works in it; then the last of the others ends both."""
    first, second, third = fleet
    second.engine.dispose()
    backup = f"{second.url.database}_backup"
    with psycopg.connect(plain(server_url), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {backup} TEMPLATE {second.url.database}")
        for clinic in fleet:
            rotated(clinic)
        for clinic in (first, second):
            retired(clinic)
            index_rotated(clinic)
        second.engine.dispose()
        admin.execute(f"DROP DATABASE {second.url.database} WITH (FORCE)")
        admin.execute(f"ALTER DATABASE {backup} RENAME TO {second.url.database}")
    second.assert_readable()
    if tool == "init-keys":
        with second.engine.begin() as connection:
            initialise_keys(second.provider, connection)
    elif tool == "rotate":
        rotated(second)
    else:
        with pytest.raises(RotationError, match="does not list this database"):
            index_rotated(second)
        with second.engine.begin() as connection:
            initialise_keys(second.provider, connection)
        index_rotated(second)
    retired(third)
    index_rotated(third)
    second.assert_readable()
    second.assert_verified()


@pytest.mark.wide
def test_an_emergency_while_a_database_is_down(
    fleet: list[Clinic], secret: VaultKeyProvider, new_provider: Callable[..., VaultKeyProvider]
) -> None:
    """As the runbook says: it gets a copy of the secret and is forgotten, the others go on, and it is rotated when it is back."""
    first, second, down = fleet
    for operation in (rotated, retired):
        for clinic in (first, second):
            operation(clinic)
    with pytest.raises(RotationError, match=f"stays in the key store for {down.name}"):
        rotated(first)
    copy = new_provider("/copy")
    copy.create(secret.fetch())
    forget(secret, here(first), down.name)
    assert retire(first.engine, first.keys, grace_days=0).removed
    for clinic in (first, second):
        rotated(clinic)
    with pytest.raises(
        RotationError, match=rf"{PATIENTS} rows need key version 1.*also that of .*{first.name}.*: do not change it"
    ):
        plan(down.engine, down.keys)
    down.provider = copy
    down.assert_readable()
    for operation in (rotated, retired):
        operation(down)
    for clinic in fleet:
        clinic.assert_verified()
        clinic.assert_readable()


def test_rows_under_a_key_that_was_done_with_need_it_again(new_clinic: NewClinic) -> None:
    """A restored database rotates again: until then the key stays for it."""
    clinic = new_clinic()
    rotated(clinic)
    held = clinic.provider.fetch()
    done = replace(held, databases=json.dumps({str(here(clinic).id): {"name": "clinic", "oldest": 2}}))
    needed = members(needing(done, here(clinic), 1))
    assert needed[here(clinic).id] == Member(clinic.name, 1, needed[here(clinic).id].index)


@pytest.mark.wide
def test_a_key_is_not_added_in_the_place_of_one_that_others_need(
    new_clinic: NewClinic, secret: VaultKeyProvider
) -> None:
    """Rows of an old backup need key 1, and another database is under key 2: that one is named, and no command that takes key 2 away."""
    other, restored = new_clinic(), new_clinic()
    with restored.engine.connect() as connection:
        old = connection.execute(text("SELECT ssn_encrypted FROM patient_data WHERE patient_id = 'PT-1'")).scalar_one()
    for operation in (rotated, retired):
        for clinic in (other, restored):
            operation(clinic)
    rotated(restored)
    with restored.engine.begin() as connection:
        connection.execute(text("ALTER TABLE patient_data DROP CONSTRAINT patient_data_key_version_floor"))
        again = "UPDATE patient_data SET ssn_encrypted = :old, key_version = 1 WHERE patient_id = 'PT-1'"
        connection.execute(text(again), {"old": old})
    with pytest.raises(RotationError, match=rf"Key version 2 stays in the key store for {other.name}") as refused:
        rotated(restored)
    assert "patch" not in str(refused.value)
    rotated(other)
    retired(other)
    with pytest.raises(RotationError, match=r"add it to the newest: `vault kv get .* \| vault kv patch"):
        rotated(restored)
    other.assert_verified()


@pytest.mark.wide
def test_a_backup_beside_a_fleet_takes_no_key_from_it(
    new_clinic: NewClinic, secret: VaultKeyProvider, new_database: Callable[[str | None], URL]
) -> None:
    """The message names the version of the secret, and no command that would bring it back for all."""
    other, mine = new_clinic(), new_clinic()
    mine.engine.dispose()
    backup = create_engine(new_database(mine.url.database))
    for operation in (rotated, retired, rotated, retired):
        for clinic in (other, mine):
            operation(clinic)
    told = rf"Version \d+ of the secret holds key version 1\. But this secret is also that of .*{other.name}.*: do not change it"
    for command in (plan, rotate, retire):
        with pytest.raises(RotationError, match=told) as refused:
            command(backup, mine.keys)
        assert "rollback" not in str(refused.value)
    backup.dispose()


@pytest.fixture
def staging(new_clinic: NewClinic) -> Iterator[tuple[Clinic, Clinic]]:
    """A database, and a copy of it with the same secret."""
    production = new_clinic()
    production.engine.dispose()
    url = production.url.set(database=f"{production.url.database}_copy")
    with psycopg.connect(plain(production.url.set(database="postgres")), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {url.database} TEMPLATE {production.url.database}")
    copy = Clinic(production.number, url, create_engine(url), production.provider)
    yield production, copy
    copy.engine.dispose()
    drop(url, production.url.set(database="postgres"))


def test_a_copy_takes_no_key_from_its_original(staging: tuple[Clinic, Clinic], secret: VaultKeyProvider) -> None:
    """Staging, restored from production with its secret, is another database to the secret, whatever it does first."""
    production, copy = staging
    rotated(production)
    with pytest.raises(RotationError, match="3 rows still need key version 1"):
        retired(copy)
    with pytest.raises(RotationError, match="does not list this database"):
        index_rotated(copy)
    rotated(copy)
    assert set(listed(secret)) == {production.name, copy.name}
    assert here(copy).id != here(production).id
    done = retire(copy.engine, copy.keys, grace_days=0)
    assert (done.removed, done.needed_by) == (False, (production.name,))
    assert rotate_index_key(copy.engine, copy.keys).needed_by == (production.name,)
    for clinic in staging:
        clinic.assert_readable()
        clinic.assert_verified()


def test_a_restored_database_forgets_what_it_was(staging: tuple[Clinic, Clinic], secret: VaultKeyProvider) -> None:
    """It may have the old name and address: then the message names the identity to forget."""
    lost, restored = staging
    identity = here(lost).id
    rotated(restored)
    held = secret.fetch()
    secret.replace(held, replace(held, databases=(held.databases or "").replace(lost.name, restored.name)))
    waits = retire(restored.engine, restored.keys, grace_days=0).needed_by
    assert waits == (f"{restored.name} (identity {identity})",)
    with pytest.raises(ConfigurationError, match=f"several databases are called.*{identity}"):
        forget(secret, here(restored), restored.name)
    forget(secret, here(restored), str(identity))
    assert retire(restored.engine, restored.keys, grace_days=0).removed
    restored.assert_verified()


def test_a_server_that_hides_its_identifier_tells_its_own_copies_apart(
    staging: tuple[Clinic, Clinic], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role may be forbidden to ask for it: the number of the database remains."""
    monkeypatch.setattr(members_module, "_MAY_ASK", text("SELECT false"))
    ids = [here(clinic).id for clinic in staging]
    assert ids[0] != ids[1]
    assert ids == [here(clinic).id for clinic in staging]


def test_a_rollback_names_the_databases_that_it_drops_from_the_list(
    new_clinic: NewClinic, secret: VaultKeyProvider
) -> None:
    """The version that holds a lost key is of the time before another database joined."""
    first = new_clinic()
    stop = threading.Event()
    stop.set()
    assert rotate(first.engine, first.keys, stop=stop).interrupted
    held = secret.fetch()
    secret.replace(held, replace(held, previous_key=None, previous_version=None))
    second = new_clinic()
    with pytest.raises(
        RotationError, match=rf"Version {held.revision} of the secret holds key version 1.*rollback"
    ) as refused:
        rotated(first)
    assert f"does not list {second.name}: run `voiceassist-db init-keys` there" in str(refused.value)
    roll_back(secret, held.revision)
    with second.engine.begin() as connection:
        initialise_keys(second.provider, connection)
    rotated(first)
    assert not retire(first.engine, first.keys, grace_days=0).removed
    for clinic in (first, second):
        clinic.assert_readable()
