"""Kill -9 of the tool, and of the server under it, at random points: no row is lost, and the next run does the rest."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import VaultServer, leading_to
from tests.durable import DurableServer, durable_server
from tests.rotation.conftest import Start, Trial, chance, ended, killed, until
from voiceassist_db import create_engine
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.schema import migrate

pytestmark = pytest.mark.wide

SLOWLY = ("--max-rows-per-second", "3000", "--json")
RUN_S = 1.0
"""About how long a run has the lease."""


def reach_a_point(trial: Trial, process: subprocess.Popen[str], dice: random.Random) -> str:
    """Wait for a random point of a run, or its end; return what kind of point it is."""
    stored = trial.provider.fetch()
    is_begun = stored.previous_version is not None
    new = stored.version + (not is_begun)
    done = trial.versions().get(new, 0)
    kinds = ["any time", "the end"]
    if done < trial.rows:
        kinds.append("among the rows")
    if not is_begun:
        kinds.append("with the new key")
    kind = dice.choice(kinds)
    wanted = trial.rows if kind == "the end" else dice.randint(min(done + 1, trial.rows), trial.rows)

    def is_there() -> bool:
        if process.poll() is not None:
            return True
        if kind == "with the new key":
            is_registered = bool(trial.ask("SELECT FROM encryption_keys WHERE version = :new", new=new))
            return is_registered or trial.provider.fetch().version == new
        if not trial.is_run_by(process):
            return False
        return kind == "any time" or trial.versions().get(new, 0) >= wanted

    until(is_there)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(dice.uniform(0, {"any time": RUN_S, "the end": RUN_S / 3}.get(kind, 0.02)))
    return kind


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.long)])
def test_kill_9_loses_nothing_and_the_next_run_does_the_rest(
    trial: Trial, environment: dict[str, str], start: Start, kills: int
) -> None:
    """After each kill every row reads back, store and registry agree; every other time the next run is killed as well."""
    dice = chance()
    points: Counter[str] = Counter()
    while points.total() < kills:
        process = start(*SLOWLY, env=environment)
        kind = reach_a_point(trial, process, dice)
        if killed(process):
            points[kind] += 1
            print(f"kill {points.total()}: {kind}, {trial.versions()}")
            trial.check()
            if not trial.is_complete():
                if dice.random() < 0.5:
                    continue
                trial.finish()
        else:
            assert 0 == process.returncode
            trial.check()
        trial.retire()
    last = ended(start("--json", env=environment))
    assert (0, 0, True) == (last.code, last.json["remaining"], last.json["verified"])
    trial.check()
    print(dict(points))


@pytest.fixture
def durable() -> Iterator[DurableServer]:
    """A durable server."""
    with durable_server() as server:
        yield server


@pytest.fixture
def durable_trial(durable: DurableServer, new_provider: Callable[..., VaultKeyProvider]) -> Iterator[Trial]:
    """A trial on the durable server."""
    engine = create_engine(durable.url())
    migrate(engine)
    provider = new_provider()
    with engine.begin() as connection:
        initialise_keys(provider, connection)
    yield Trial(engine, provider)
    engine.dispose()


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.long)])
def test_kill_9_of_the_server_loses_nothing(
    durable: DurableServer, durable_trial: Trial, vault: VaultServer, vault_path: str, start: Start, kills: int
) -> None:
    """With synchronous commits and without, every row is there under a known key; the run goes on, or the next one does."""
    trial, dice = durable_trial, chance()
    environment = leading_to(durable.url(), vault, vault_path)
    codes: Counter[int] = Counter()
    while codes.total() < kills:
        process = start(*SLOWLY, env=environment)
        kind = reach_a_point(trial, process, dice)
        durable.kill()
        durable.start(synchronous_commit=["off", "on"][codes.total() % 2])
        print(f"kill {codes.total() + 1}: {kind}, {trial.versions()}")
        trial.check()
        outcome = ended(process)
        codes[outcome.code] += 1
        if outcome.code == 0:
            trial.check()
        else:
            assert 1 == outcome.code
            assert outcome.stderr.splitlines()[-1].startswith("error: the database ")
            if not trial.is_complete():
                trial.finish()
        trial.retire()
    print(dict(codes))
