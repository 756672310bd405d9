"""Commands on three databases that share one secret: one new key for all, one report, and each database on its own when it fails."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
import requests
from psycopg import sql
from sqlalchemy import URL, Engine, text

from tests.cli.conftest import ROTATE, Outcome, Run
from tests.conftest import VaultServer, drop, plain
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.cli.prospects import COMPLETE
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.decision import Run as Rotation
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation.lease import Lease

ROWS = 5
wide = pytest.mark.wide

NOBODY = "127.0.0.1:1"


@dataclass(frozen=True)
class Clinic:
    """One database of the fleet."""

    url: URL
    engine: Engine
    provider: VaultKeyProvider

    @property
    def bare(self) -> str:
        """Its name on the server."""
        assert self.url.database is not None
        return self.url.database

    @property
    def name(self) -> str:
        """What a report calls it."""
        return f"{self.bare} on {self.url.host}:{self.url.port}"

    @property
    def away(self) -> str:
        """An address where nobody answers, as of a server that is down."""
        return f"postgresql://{NOBODY}/{self.bare}"

    @property
    def name_away(self) -> str:
        """What a report calls it there."""
        return f"{self.bare} on {NOBODY}"

    def join(self, *, first: bool) -> None:
        """Make or register the keys of the secret."""
        with self.engine.begin() as connection:
            initialise_keys(self.provider, connection, join=not first)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Let its server refuse every connection to it."""
        self.engine.dispose()
        for limit in (0, -1):
            with psycopg.connect(plain(self.url.set(database="postgres")), autocommit=True) as admin:
                admin.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(sql.Identifier(self.bare), limit))
            if limit == 0:
                yield

    def versions(self) -> dict[int, int]:
        """Return how many patients there are under each key version."""
        query = text("SELECT key_version, count(*) FROM patient_data GROUP BY 1")
        with self.engine.connect() as connection:
            return dict(map(tuple, connection.execute(query)))

    def names(self) -> set[str | None]:
        """Return every name, read as an application that starts now would, by search and by page."""
        with Database(self.engine, self.provider).transaction() as tx:
            found = {each.name for each in tx.patients.page(limit=2 * ROWS)}
            assert all(name and tx.patients.find_by_name(name) for name in found)
            return found


Fleet = tuple[Clinic, Clinic, Clinic]


@pytest.fixture
def fleet(
    new_database: Callable[[str | None], URL],
    server_url: URL,
    template: str,
    new_provider: Callable[..., VaultKeyProvider],
) -> Iterator[Fleet]:
    """Three databases with patients, on one secret."""
    clinics = []
    for number in range(3):
        url = new_database(template)
        clinic = Clinic(url, create_engine(url), new_provider())
        clinic.join(first=number == 0)
        with Database(clinic.engine, clinic.provider).transaction() as tx:
            tx.patients.add_many(Patient(patient_id=f"PT-{n}", name=f"Zoë {number} {n}") for n in range(ROWS))
        clinics.append(clinic)
    yield clinics[0], clinics[1], clinics[2]
    for clinic in clinics:
        clinic.engine.dispose()
        drop(clinic.url, server_url)


@pytest.fixture
def secrets(fresh_environment: dict[str, str], fleet: Fleet) -> dict[str, str]:
    """The environment of the fleet's server, with its login, and of its secret."""
    return fresh_environment | {"DATABASE_URL": plain(fleet[0].url)}


Command = Callable[..., Outcome]


@pytest.fixture
def rotate(run: Run, secrets: dict[str, str]) -> Command:
    """A function that runs `rotate_keys.py`, for the databases that it is given by name."""

    def call(*databases: str, options: tuple[str, ...] = ()) -> Outcome:
        which = [part for each in databases for part in ("--database", each)]
        return run(*which, *options, env=secrets, command=rotate_command)

    return call


def named(fleet: Fleet) -> list[str]:
    """Return the options that name all."""
    return [part for each in fleet for part in ("--database", each.bare)]


def bare(fleet: Fleet) -> tuple[str, ...]:
    """Return the names of all."""
    return tuple(each.bare for each in fleet)


def codes(done: Outcome) -> list[int]:
    """Return the exit codes of the databases in the JSON report, in its order, after proving the form of the report."""
    assert done.json.keys() == {"databases", "exit_code"}
    assert done.json["exit_code"] == done.code
    return [each["exit_code"] for each in done.json["databases"].values()]


def intact(fleet: Fleet) -> None:
    """Assert that every patient of every database can be read and found."""
    for number, clinic in enumerate(fleet):
        assert clinic.names() == {f"Zoë {number} {n}" for n in range(ROWS)}


def test_a_fleet_gets_one_new_key(rotate: Command, fleet: Fleet) -> None:
    """The first database makes it, the others take it; the report has each one's usual object under its name."""
    done = rotate(*bare(fleet), options=("--json",))
    assert (done.code, done.said, codes(done)) == (0, "", [0, 0, 0])
    assert list(done.json["databases"]) == [each.name for each in fleet]
    for report in done.json["databases"].values():
        known = {"from_version": 1, "to_version": 2, "rows": ROWS, "remaining": 0, "verified": True, "exit_code": 0}
        assert report == report | known
    assert [each.versions() for each in fleet] == [{2: ROWS}] * 3
    assert list(fleet[0].provider.fetch().versions()) == [2, 1]
    intact(fleet)


@wide
def test_a_fleet_in_words(run: Run, secrets: dict[str, str], fleet: Fleet, tmp_path: Path) -> None:
    """Each part begins with the name, each line on standard error as well; the last line says how many succeeded."""
    one, two, three = fleet
    (tmp_path / "fleet").write_text(f"# clinics\n{one.bare}\n{two.away}\n{three.bare}\n")
    done = run("--databases", str(tmp_path / "fleet"), env=secrets, command=rotate_command)
    parts = done.stdout.split("\n\n")
    assert [part.splitlines()[0] for part in parts[:3]] == [one.name, two.name_away, three.name]
    for part in (parts[0], parts[2]):
        assert part.splitlines()[1].startswith(f"key version 1 → 2: {ROWS} rows in ")
    assert parts[3] == f"2 of 3 databases succeeded; {two.name_away} ended with exit code 1\n"
    assert done.code == 1
    (error,) = done.said.splitlines()
    assert error.startswith(f"error: {two.name_away}: no server answers at the address of its entry in the list")


@wide
def test_one_is_away_and_comes_back(rotate: Command, run: Run, secrets: dict[str, str], fleet: Fleet) -> None:
    """The others get the new key. The same command again rotates the one alone, whichever comes first, and makes no key."""
    one, two, three = fleet
    done = rotate(one.bare, two.away, three.bare, options=("--json",))
    assert codes(done) == [0, 1, 0]
    assert "no server answers" in done.json["databases"][two.name_away]["error"]
    intact(fleet)
    again = rotate(one.bare, two.away, three.bare, options=("--json",))
    assert codes(again) == [0, 1, 0]  # it may need the older key, so nobody is told to retire that
    assert again.json["databases"][one.name] == {"nothing_to_do": COMPLETE, "exit_code": 0}
    back = rotate(two.bare, one.bare, three.bare, options=("--json",))
    assert codes(back) == [0, 0, 0]
    assert [report.get("nothing_to_do") for report in back.json["databases"].values()] == [None, COMPLETE, COMPLETE]
    assert list(one.provider.fetch().versions()) == [2, 1]
    assert [each.versions() for each in fleet] == [{2: ROWS}] * 3
    verified = run("verify", *named(fleet), "--json", env=secrets)
    assert codes(verified) == [0, 0, 0]
    assert all(each["ok"] for each in verified.json["databases"].values())


@wide
def test_an_interruption_in_the_second(rotate: Command, run: Run, secrets: dict[str, str], fleet: Fleet) -> None:
    """It ends after its batches, the third is not begun, and the same command again finishes both with the same key."""
    one, two, three = fleet
    with two.engine.connect() as locking:
        locking.execute(text("SELECT FROM patient_data WHERE patient_id = 'PT-3' FOR UPDATE"))
        process = subprocess.Popen(
            [*ROTATE, *named(fleet), "--json"], env=secrets, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while 2 not in two.versions():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate()
        locking.rollback()
    done = Outcome(process.returncode, stdout, stderr)
    assert codes(done) == [0, 6, 6]
    assert done.json["databases"][two.name]["interrupted"] is True
    assert done.json["databases"][three.name] == {
        "not_begun": "not begun, because the command was interrupted: run it again",
        "exit_code": 6,
    }
    assert done.said.startswith(f"{two.name}: stopping after the batches that are under way")
    assert three.versions() == {1: ROWS}
    intact(fleet)
    dry = rotate(*bare(fleet), options=("--dry-run", "--json"))
    assert codes(dry) == [0, 0, 0]
    assert [each.get("to_version") for each in dry.json["databases"].values()] == [None, 2, 2]
    again = rotate(*bare(fleet), options=("--json",))
    assert codes(again) == [0, 0, 0]
    assert again.json["databases"][one.name]["nothing_to_do"] == COMPLETE
    assert list(one.provider.fetch().versions()) == [2, 1]
    assert [each.versions() for each in fleet] == [{2: ROWS}] * 3
    intact(fleet)


@wide
def test_a_run_that_is_active_in_one(rotate: Command, fleet: Fleet) -> None:
    """It is told with its own exit code, and the others are rotated. A dry run changes nothing and says the same."""
    one, two, _ = fleet
    with Lease.take(two.engine, Rotation("encryption", 1, 2)) as lease:
        lease.keep(dict)
        dry = rotate(*bare(fleet), options=("--dry-run", "--json"))
        assert codes(dry) == [0, 5, 0]
        assert list(one.provider.fetch().versions()) == [1]
        done = rotate(*bare(fleet), options=("--json",))
        lease.release(finished=False)
    assert codes(done) == [0, 5, 0]
    assert done.code == 5
    assert "is being run by" in done.json["databases"][two.name]["error"]
    assert f"error: {two.name}: " in done.stderr
    assert (one.versions(), two.versions()) == ({2: ROWS}, {1: ROWS})
    assert codes(rotate(*bare(fleet), options=("--resume", "--json"))) == [0, 0, 0]
    assert [each.versions() for each in fleet] == [{2: ROWS}] * 3


@wide
def test_no_key_is_made_while_one_lacks_its_own(rotate: Command, fleet: Fleet) -> None:
    """A secret was rolled back over a database that nobody had rotated. Its message has the remedy, after which all is rotated."""
    one, two, three = fleet
    assert rotate(one.bare, two.bare).code == 0
    provider = one.provider
    both = provider.fetch()
    provider.replace(both, replace(both, previous_version=None, previous_key=None))
    held = rotate(*bare(fleet), options=("--json",))
    assert codes(held) == [1, 1, 1]
    errors = [each["error"] for each in held.json["databases"].values()]
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"no new key was made, because {three.name} needs a key that the secret does not hold")
    assert f"Version {both.revision} of the secret holds key version 1: `vault kv rollback" in errors[2]
    assert list(provider.fetch().versions()) == [2]
    provider.replace(provider.fetch(), both)
    assert codes(rotate(*bare(fleet), options=("--json",))) == [0, 0, 0]
    assert [each.versions() for each in fleet] == [{2: ROWS}] * 3
    intact(fleet)


@wide
def test_the_other_commands_on_a_fleet(run: Run, secrets: dict[str, str], fleet: Fleet) -> None:
    """Each has its usual object for every database that answers, and the exit code is the worst one."""
    one, two, three = fleet
    with three.engine.begin() as connection:
        connection.execute(text("UPDATE patient_data SET name_index = NULL WHERE patient_id = 'PT-1'"))
    where = ("--database", one.bare, "--database", two.away, "--database", three.bare)
    for name, expected, usual in (
        ("status", [0, 1, 0], "keys"),
        ("verify", [0, 1, 1], "ok"),
        ("check", [1, 1, 1], "safe"),
    ):
        done = run(name, *where, "--json", env=secrets)
        assert codes(done) == expected, name
        first, away, last = done.json["databases"].values()
        alone = run(name, "--json", env=secrets)
        assert alone.json.keys() | {"exit_code"} == first.keys()
        assert {usual} <= first.keys() & last.keys()
        assert away.keys() == {"error", "exit_code"}
    words = run("status", *where, env=secrets)
    assert words.code == 1
    assert [part.splitlines()[0] for part in words.stdout.split("\n\n")[:3]] == [one.name, two.name_away, three.name]
    assert words.said.startswith(f"error: {two.name_away}: ")
    only = run("status", "--database", one.bare, "--json", env=secrets)
    assert codes(only) == [0]
    assert only.json["databases"][one.name]["tables"]["patient_data"] == {"1": ROWS}


@wide
def test_a_key_store_that_is_away(rotate: Command, run: Run, secrets: dict[str, str], fleet: Fleet) -> None:
    """Every database tells it, and nothing is changed; `status` needs no key store."""
    secrets |= {"VAULT_ADDR": f"http://{NOBODY}"}
    for options in ((), ("--retire",)):
        done = rotate(*bare(fleet), options=(*options, "--json"))
        assert codes(done) == [1, 1, 1], options
        assert all("Vault" in each["error"] for each in done.json["databases"].values())
    assert codes(run("status", *named(fleet), "--json", env=secrets)) == [0, 0, 0]
    assert [each.versions() for each in fleet] == [{1: ROWS}] * 3


@wide
def test_the_last_database_ends_the_key(rotate: Command, fleet: Fleet) -> None:
    """With one away the key stays for it, whatever is run; with all there it goes."""
    one, two, three = fleet
    retire = ("--retire", "--grace-days", "0", "--json")
    assert rotate(*bare(fleet)).code == 0
    with two.down():
        partly = rotate(*bare(fleet), options=retire)
        assert codes(partly) == [0, 1, 0]
        for clinic in (one, three):
            report = partly.json["databases"][clinic.name]
            assert (report["removed"], two.name in report["needed_by"]) == (False, True)
        assert codes(rotate(*bare(fleet), options=("--json",))) == [0, 1, 0]
        assert list(one.provider.fetch().versions()) == [2, 1]
    intact(fleet)
    two_is_left = rotate(*bare(fleet), options=("--json",))
    assert codes(two_is_left) == [1, 1, 1]
    assert "retire it first" in two_is_left.json["databases"][two.name]["error"]
    done = rotate(*bare(fleet), options=retire)
    assert codes(done) == [0, 0, 0]
    assert list(one.provider.fetch().versions()) == [2]
    nothing = rotate(*bare(fleet), options=retire)
    assert codes(nothing) == [0, 0, 0]
    assert all("nothing to retire" in each["nothing_to_do"] for each in nothing.json["databases"].values())
    intact(fleet)


@wide
def test_one_new_index_key_for_all(rotate: Command, run: Run, secrets: dict[str, str], fleet: Fleet) -> None:
    """One is away, and every patient is found in all. The same command again ends the older key, and makes no other one."""
    one, two, three = fleet
    before = one.provider.fetch().index_key
    with two.down():
        assert codes(rotate(*bare(fleet), options=("--index-key", "--json"))) == [0, 1, 0]
    made = one.provider.fetch()
    assert (made.previous_index_key, made.index_key == before) == (before, False)
    intact(fleet)
    again = rotate(two.bare, one.bare, three.bare, options=("--index-key", "--json"))
    assert codes(again) == [0, 0, 0]
    assert [each.get("rows") for each in again.json["databases"].values()] == [ROWS, None, None]
    ended = one.provider.fetch()
    assert (ended.index_key, ended.previous_index_key) == (made.index_key, None)
    intact(fleet)
    assert codes(run("verify", *named(fleet), "--json", env=secrets)) == [0, 0, 0]


def without_history(vault: VaultServer, vault_path: str, keys: KeySet, provider: VaultKeyProvider) -> None:
    """Make the secret anew, so that no earlier version of it has a list."""
    address = f"{vault.address}/v1/{vault_path.replace('/', '/metadata/', 1)}"
    assert requests.delete(address, headers={"X-Vault-Token": vault.root_token}, timeout=60).ok
    provider.create(keys)


@wide
def test_a_secret_without_a_list_gets_one_before_a_key_ends(
    rotate: Command, fleet: Fleet, vault: VaultServer, vault_path: str
) -> None:
    """It is of an earlier version. The first database would end the key that the others need; and so it would for one that is away."""
    one, two, _ = fleet
    provider = one.provider
    without_history(vault, vault_path, replace(provider.fetch(), databases=""), provider)
    with two.down():
        for options in (("--index-key",), ("--retire", "--grace-days", "0")):
            before = replace(provider.fetch(), databases="", revision=0)
            held = rotate(*bare(fleet), options=(*options, "--json"))
            assert codes(held) == [1, 1, 1]
            errors = [each["error"] for each in held.json["databases"].values()]
            assert errors[0] == errors[2]
            assert errors[0].startswith(
                f"the secret does not list {two.name}, so a key could leave it that is needed there"
            )
            assert before == replace(provider.fetch(), databases="", revision=0)
    intact(fleet)
    without_history(vault, vault_path, replace(provider.fetch(), databases=""), provider)
    done = rotate(*bare(fleet), options=("--index-key", "--json"))
    assert codes(done) == [0, 0, 0]
    assert [len(each["needed_by"]) for each in done.json["databases"].values()] == [2, 1, 0]
    intact(fleet)


@wide
def test_a_database_under_two_names_is_refused(run: Run, secrets: dict[str, str], fleet: Fleet, tmp_path: Path) -> None:
    """To the secret it is one, as a copy and its original are; the other database is rotated."""
    one, two, _ = fleet
    twin = plain(two.url.set(host="localhost"))
    file = tmp_path / "fleet"
    file.touch(mode=0o600)
    file.write_text(f"{one.bare}\n{two.bare}\n{twin}\n")
    done = run("--databases", str(file), "--json", env=secrets, command=rotate_command)
    assert codes(done) == [0, 1, 1]
    names = list(done.json["databases"])
    assert names[2] == f"{two.bare} on localhost:{two.url.port}"
    for name in names[1:]:
        assert done.json["databases"][name]["error"].startswith(f"{names[1]} and {names[2]} have the same identity")
    assert two.versions() == {1: ROWS}


KILLS = 60
"""Of the long trial."""

RUNS = ((), ("--retire", "--grace-days", "0"), ("--index-key",))


def run_until(command: list[str], env: dict[str, str], fleet: Fleet, killed_after_s: float | None) -> tuple[int, float]:
    """Run a command, killed some time after its first connection; return its exit code and how long it had connections, in seconds."""
    for clinic in fleet:
        clinic.engine.dispose()
    query = "SELECT FROM pg_stat_activity WHERE datname = ANY(%s)"
    with psycopg.connect(plain(fleet[0].url.set(database="postgres")), autocommit=True) as admin:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not admin.execute(query, [list(bare(fleet))]).rowcount:
            time.sleep(0.01)
    began = time.monotonic()
    try:
        process.wait(killed_after_s)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait(), time.monotonic() - began


@pytest.mark.long
def test_a_fleet_that_is_killed_again_and_again(
    rotate: Command, run: Run, secrets: dict[str, str], fleet: Fleet, capfd: pytest.CaptureFixture[str]
) -> None:
    """At random moments of every kind of run: each patient can be read after each kill, and the same command ends it."""
    chance = random.Random(13)  # noqa: S311  # of when to kill
    lasts = dict.fromkeys(RUNS, 1.0)
    died = 0
    for number in range(KILLS):
        options = RUNS[number % len(RUNS)]
        command = [*ROTATE, *named(fleet), *options]
        code, _ = run_until(command, secrets, fleet, chance.random() * lasts[options])
        died += code == -signal.SIGKILL
        intact(fleet)
        code, lasted = run_until(command, secrets, fleet, None)
        intact(fleet)
        lasts[options] = max(lasts[options], lasted)
        assert code == 0 or "retire it first" in rotate(*bare(fleet)).stderr  # all was done before the kill
    held = fleet[0].provider.fetch()
    assert (held.previous_version, held.previous_index_key) == (None, None)
    assert codes(run("verify", *named(fleet), "--json", env=secrets)) == [0, 0, 0]
    with capfd.disabled():
        print(f"{died} of {KILLS} runs were killed, which last {lasts} s; the key version is {held.version}")
    assert died
