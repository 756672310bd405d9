"""Each object that holds a secret, printed by each common tool: a mask, or a refusal."""

from __future__ import annotations

import base64
import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Text
from sqlalchemy.orm import Session

from tests.conftest import VaultServer, throwaway_server
from tests.secrecy.scanner import Scanner
from tests.secrecy.tools import TAKES_ALL, TOOLS, plain_traceback, rich_traceback, sent_to_sentry, shown
from voiceassist_db import AsyncDatabase, ClinicalNote, Database, Patient, config, create_async_engine
from voiceassist_db.addresses import ServerAddress
from voiceassist_db.embedded import EmbeddedOpenBao, EmbeddedPostgres
from voiceassist_db.errors import VoiceAssistDBError
from voiceassist_db.masking import Masked, Opaque
from voiceassist_db.pgcrypto.arrays import dumper
from voiceassist_db.pgcrypto.binding import Keys
from voiceassist_db.providers.environment import EnvironmentKeyProvider
from voiceassist_db.providers.vault import AppRoleLogin, TokenLogin, VaultKeyProvider
from voiceassist_db.providers.vault.answers import Answer, RawSecret
from voiceassist_db.providers.vault.client import Lease, Stored
from voiceassist_db.repositories.bulk import Batch
from voiceassist_db.testing import MemoryKeyProvider

pytestmark = pytest.mark.wide

SECRET = "S3cret-Ænigma-4711"
"""A token, a password and a patient's name."""

NAMES = (
    "Key", "KeySet", "KeyVersion", "Keyring", "Keys", "Array", "Masked", "TokenLogin", "AppRoleLogin", "RawSecret", "Answer",
    "Lease", "Stored", "VaultKeyProvider", "VaultClient", "GivenToken", "LoginToken", "VaultKeyProvider by AppRole",
    "EnvironmentKeyProvider", "MemoryKeyProvider", "KeyringSource", "Database", "AsyncDatabase", "Repositories", "PatientRepository", "Batch",
    "EmbeddedPostgres", "EmbeddedOpenBao", "ServerAddress", "Patient", "ClinicalNote", "a patient that was read in part",
)  # fmt: skip


@dataclass
class Naive:
    """An object as a program has it that thinks nothing of it."""

    secret: str


@dataclass(frozen=True)
class Things:
    """The objects by name, and how their secrets are found in a text."""

    by_name: dict[str, Any]
    scanner: Scanner

    def leaks(self, text: str) -> list[str]:
        """Return what of the secrets is in a text."""
        plain = text.replace("\\u2022", "•")
        return list(self.scanner.hits(plain.encode(errors="surrogateescape")))


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedPostgres, EmbeddedOpenBao]]:
    """Servers with passwords."""
    with throwaway_server() as postgres, EmbeddedOpenBao() as openbao:
        yield postgres, openbao


@pytest.fixture
def things(
    request: pytest.FixtureRequest, database: Database, vault: VaultServer, vault_path: str, servers: Any
) -> Iterator[Things]:
    """One of each, in use: with what it remembers after it has worked."""
    postgres, openbao = servers
    provider = database.keys.provider
    assert isinstance(provider, VaultKeyProvider)
    keys = provider.fetch()
    patient = Patient(patient_id="PT-1", ssn="917-54-9123", mrn=SECRET, name=SECRET, address={"street": SECRET})
    by_role = VaultKeyProvider("http://127.0.0.1:1", AppRoleLogin(SECRET, SECRET))
    by_role._token._lease = Lease(Masked(SECRET), 60, 60, True)  # type: ignore[union-attr]  # as a login leaves it
    with ExitStack() as stack:
        tx = stack.enter_context(database.transaction())
        assert isinstance(tx.session, Session)
        tx.patients.add(patient)
        keyring = database.keys.keyring(tx.session.connection())
        batch: Batch[Patient] = Batch([patient], type(tx.patients)._rows)
        assert batch.encode(keyring)
        environment = EnvironmentKeyProvider(base64.b64encode(SECRET.encode().ljust(32)[:32]).decode())
        by_name = {
            "Key": keys.key,
            "KeySet": keys,
            "KeyVersion": keyring.current,
            "Keyring": keyring,
            "Keys": Keys([keys.key, None]),
            "Array": dumper(Text())([SECRET]),
            "Masked": Masked(SECRET),
            "TokenLogin": TokenLogin(SECRET),
            "AppRoleLogin": AppRoleLogin(SECRET, SECRET),
            "RawSecret": RawSecret({SECRET: SECRET}),
            "Answer": Answer(200, RawSecret({SECRET: SECRET})),
            "Lease": Lease(Masked(SECRET), 1, 1, True),
            "Stored": Stored(RawSecret({"key": SECRET}), 1),
            "VaultKeyProvider": provider,
            "VaultClient": provider._client,
            "GivenToken": provider._token,
            "LoginToken": by_role._token,
            "VaultKeyProvider by AppRole": by_role,
            "EnvironmentKeyProvider": environment,
            "MemoryKeyProvider": MemoryKeyProvider(keys),
            "KeyringSource": database.keys,
            "Database": database,
            "AsyncDatabase": AsyncDatabase(create_async_engine(database.engine.url), provider),
            "Repositories": tx,
            "PatientRepository": tx.patients,
            "Batch": batch,
            "EmbeddedPostgres": postgres,
            "EmbeddedOpenBao": openbao,
            "ServerAddress": ServerAddress.parse("https://user:S3cret-4711@vault.example"),
            "Patient": patient,
            "ClinicalNote": ClinicalNote(patient=patient.id, note=SECRET, metadata={SECRET: SECRET}),
            "a patient that was read in part": tx.patients.get("PT-1", fields=["name"]),
        }
        held = [keys.key, keys.index_key, *(each for each in keyring._column_keys.values())]
        held += [each for index_keys in keyring._index_column_keys.values() for each in index_keys]
        held.append(environment.fetch().key)
        secrets = {
            "the secret": SECRET,
            "the SSN": "917-54-9123",
            "the URL's password": "S3cret-4711",
            "the root token": vault.root_token,
            "PostgreSQL's password": postgres.password,
            "OpenBao's token": openbao.root_token,
            "OpenBao's unseal key": openbao.unseal_key,
            **{f"key {number}": each.expose().decode() for number, each in enumerate(held) if each is not None},
        }
        yield Things(by_name, Scanner(secrets))


RECORDS = {"Patient", "ClinicalNote", "a patient that was read in part"}


@pytest.mark.parametrize("tool", TOOLS)
def test_no_tool_shows_a_secret(tool: str, things: Things) -> None:
    """Of no object that holds one. A dataclass of the usual kind is what the same tool is seen to show."""
    assert set(NAMES) == set(things.by_name)
    assert things.leaks(shown(tool, Naive(SECRET)))
    for name, thing in things.by_name.items():
        if name not in RECORDS or tool not in TAKES_ALL:
            assert [] == things.leaks(shown(tool, thing)), name
            assert [] == things.leaks(shown(tool, {"held": [thing]}) if tool not in TAKES_ALL else ""), name


@pytest.mark.parametrize("tool", sorted(TAKES_ALL))
def test_a_record_is_handed_over_as_a_whole_to_who_asks_for_it(tool: str, things: Things) -> None:
    """An application sends records to other processes and to JSON. That is its own word, which names no field."""
    assert things.leaks(shown(tool, things.by_name["Patient"]))


def test_a_copy_of_a_record_is_as_silent(things: Things) -> None:
    """Whether it was copied, unpickled or changed on the way."""
    patient = things.by_name["Patient"]
    for each in (copy.deepcopy(patient), pickle.loads(pickle.dumps(patient)), dataclasses.replace(patient, mrn=None)):  # noqa: S301  # our own bytes
        assert [] == things.leaks(f"{each!r} {dir(each)}")


def test_every_opaque_class_is_tried(things: Things) -> None:
    """A new one is added here, or this fails."""
    todo, known = [Opaque], set()
    while todo:
        known.add(todo.pop())
        todo += [
            each for kind in list(known) for each in kind.__subclasses__() if each not in known and each not in todo
        ]
    ours = {each for each in known if each.__module__.startswith("voiceassist_db")} - {Opaque}
    assert ours
    assert {type(each) for each in things.by_name.values()} >= ours


@pytest.mark.parametrize("reporter", [plain_traceback, rich_traceback, sent_to_sentry])
def test_no_report_of_an_error_shows_the_environment(reporter: Callable[[BaseException], str], things: Things) -> None:
    """Settings that contradict each other are reported from functions that hold all of the environment."""
    root = base64.b64encode(SECRET.encode().ljust(32)[:32]).decode()
    vault = {"VAULT_ADDR": "https://vault.example", "VAULT_TOKEN": SECRET}
    given = [
        {**vault, "VOICEASSIST_DB_VAULT_PATH": "secret"},
        {**vault, "VAULT_ADDR": f"http://u:{SECRET}@vault.example"},
        {**vault, "VAULT_ADDR": f"ftp://u:{SECRET}@vault.example"},
        {**vault, "VAULT_NAMESPACE": "ä"},
        {**vault, "ENCRYPTION_KEY": root},
        {**vault, "VOICEASSIST_DB_ALLOW_UNSAFE": SECRET},
        {"ENCRYPTION_KEY": f"{root[:-4]}{SECRET}"},
        {"VAULT_ADDR": "https://vault.example", "VAULT_ROLE_ID": SECRET},
        {"DATABASE_URL": f"mysql://u:{SECRET}@db/x"},
        {"DATABASE_URL": f"postgresql://u:{SECRET}@db:port/x"},
    ]
    for number, environment in enumerate(given):
        ask = config.database_url if "DATABASE_URL" in environment else config.key_provider
        settings = iter([environment])
        del environment
        with pytest.raises((VoiceAssistDBError, ValueError)) as caught:
            ask(next(settings))
        error = caught.value
        assert error.__traceback__ is not None
        error.__traceback__ = error.__traceback__.tb_next  # the frame of this test, which is not the product's
        assert [] == things.leaks(reporter(error)), number


@pytest.mark.parametrize("reporter", [plain_traceback, rich_traceback, sent_to_sentry])
def test_no_report_of_an_error_of_a_repository_shows_a_value(
    reporter: Callable[[BaseException], str], things: Things
) -> None:
    """Neither from the product's frames nor from the record that the application's own frame holds."""
    tx, patient = things.by_name["Repositories"], things.by_name["Patient"]
    attempts: list[Callable[[], object]] = [
        lambda: tx.patients.add(dataclasses.replace(patient, name=5)),
        lambda: tx.patients.find_by_ssn(f"{patient.ssn} {SECRET}"),
        lambda: tx.patients.get("PT-0", fields=["name"]),
        lambda: things.by_name["a patient that was read in part"].ssn,
        lambda: tx.patients.add_many([patient, patient]),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises((VoiceAssistDBError, ValueError)) as caught, tx.session.begin_nested():
            attempt()
        error = caught.value
        assert error.__traceback__ is not None
        error.__traceback__ = error.__traceback__.tb_next
        assert [] == things.leaks(reporter(error)), number


SUITE = """
import dataclasses, datetime
from voiceassist_db import ClinicalNote, Patient
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.providers.vault import AppRoleLogin, TokenLogin
from voiceassist_db.repositories import Record, record

SECRET, OTHER = "S3cret-" + "Ænigma-4711", "S3cret-" + "Ænigma-4711-b"

@record
class Visit(Record):
    reason: str
    id: int

@dataclasses.dataclass(frozen=True)
class Naive:
    secret: str

def patient(value):
    return Patient(patient_id="PT-1", ssn=value, name=value, address={value: value}, id=None)

def compare(left, right):
    kept, also_kept = left, right
    assert left == right

def test_naive():
    compare(Naive(SECRET), Naive(OTHER))
def test_patients():
    compare(patient(SECRET), patient(OTHER))
def test_lists():
    compare([patient(SECRET)], [patient(OTHER)])
def test_dicts():
    compare({"a": patient(SECRET)}, {"a": patient(OTHER)})
def test_sets():
    compare({Visit(reason=SECRET, id=1)}, {Visit(reason=OTHER, id=1)})
def test_visits():
    compare(Visit(reason=SECRET, id=1), Visit(reason=OTHER, id=1))
def test_notes():
    compare(ClinicalNote(patient=None, note=SECRET, id=None), ClinicalNote(patient=None, note=OTHER, id=None))
def test_in():
    one, many = patient(SECRET), [patient(OTHER)]
    assert one in many
def test_not_equal():
    one, other = patient(SECRET), patient(SECRET)
    assert one != other
def test_raises():
    one = patient(SECRET)
    one.ssn = None
def test_tokens():
    compare(TokenLogin(SECRET), TokenLogin(OTHER))
def test_roles():
    compare(AppRoleLogin(SECRET, SECRET), AppRoleLogin(SECRET, OTHER))
def test_keys():
    compare(Key(SECRET.encode().ljust(32)[:32]), Key(OTHER.encode().ljust(32)[:32]))
def test_key_sets():
    compare(KeySet(version=1, key=Key(SECRET.encode().ljust(32)[:32])), KeySet(version=2, key=Key(OTHER.encode().ljust(32)[:32])))
"""


def test_a_failing_test_suite_shows_no_value(tmp_path: Path, things: Things) -> None:
    """Pytest at its most talkative prints both sides of a comparison, and the fields of dataclasses that differ."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-vvv", "--showlocals", "--tb=long", "-p", "no:cacheprovider"]

    def said(*options: str) -> str:
        return subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    naive, ours = said("-k", "test_naive"), said("-k", "not test_naive")
    assert "1 failed" in naive
    assert things.leaks(naive)
    assert "13 failed" in ours
    assert "ssn=•••" in ours
    assert [] == things.leaks(ours)


def test_records_are_equal_as_before() -> None:
    """By class and compared fields, as a dataclass is; and equal ones have one hash."""
    one = Patient(patient_id="PT-1", ssn="1", name="x")
    same = dataclasses.replace(one, created_at=datetime.now(UTC))
    assert one == same
    assert hash(one) == hash(same)
    assert 1 == len({one, same})
    for other in (dataclasses.replace(one, name="y"), dataclasses.replace(one, patient_id="PT-2")):
        assert one != other
    assert one != "PT-1"
    assert one.__eq__("PT-1") is NotImplemented
    assert one != ClinicalNote(patient=one.id, note="x", id=one.id)
    with pytest.raises(TypeError, match="unhashable"):
        hash(dataclasses.replace(one, address={}))


def test_a_record_that_was_read_in_part_differs_from_the_whole_one(things: Things) -> None:
    """It is equal to one with the same fields alone."""
    part = things.by_name["a patient that was read in part"]
    assert part != things.by_name["Patient"]
    assert part == copy.copy(part)
