"""What a change costs: two versions of this package, measured turn by turn against one server, in one run.

    .venv/bin/python tests/benchmarks/compare_commits.py COMMIT

Prints, for each operation, the time of the working tree over that of the commit: the median of all rounds, and the quartiles.
Each version has a process and a database of its own; both use the same server and the same kind of keys. Two processes of one
version differ by 1 %, whatever they run, for their memory lies elsewhere: so there is a new pair of them for every few rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

ROUNDS = 120
PAIR_ROUNDS = 30
"""Rounds after which both versions have a new process."""

CALLS = {"get": 100, "find": 60, "update": 60, "add": 60, "add_many": 4, "new connection": 12, "rotate": 1}
BULK = 200
"""Patients of one call of ``add_many``."""

WARM_UP = 10
"""Calls until the driver has prepared the statement."""

PATIENTS = 2000
ROTATED = 10_000
"""Rows of the table that is rotated, which is a database of its own."""

ROOT = Path(__file__).parents[2]


class Memory:
    """A key store in this process: an environment cannot be rotated."""

    def __init__(self) -> None:
        self._held: Any = None

    def fetch(self) -> Any:
        from voiceassist_db.errors import KeysNotFoundError

        if self._held is None:
            raise KeysNotFoundError("no keys yet")
        return self._held

    def create(self, keys: Any) -> None:
        self._held = keys

    def replace(self, old: Any, new: Any) -> None:
        self._held = dataclasses.replace(new, revision=old.revision + 1)


def initialisation() -> ModuleType:
    """Return the module that has `initialise_keys` in the version that is imported here."""
    try:
        return importlib.import_module("voiceassist_db.initialisation")
    except ModuleNotFoundError:
        return importlib.import_module("voiceassist_db.keyring")


class Worker:
    """The operations of the version that is imported here, on a database of its own."""

    def __init__(self, url: str, *, turn: int) -> None:
        from voiceassist_db import Database, Patient, create_engine
        from voiceassist_db.providers.environment import EnvironmentKeyProvider
        from voiceassist_db.schema import migrate

        self._patient = Patient
        self._engine = create_engine(url)
        migrate(self._engine)
        self._database = Database(self._engine, EnvironmentKeyProvider(os.environ["ENCRYPTION_KEY"]))
        with self._engine.begin() as connection:
            initialisation().initialise_keys(self._database.keys.provider, connection)
        self._rotating: Any = None
        self._name = f"{self._engine.url.database}_{turn}"
        self._added = PATIENTS + turn * 1_000_000
        self._turn = 0
        if turn == 0:
            with self._database.transaction() as tx:
                tx.patients.add_many([self._new(n) for n in range(PATIENTS)])

    def _new(self, number: int) -> Any:
        return self._patient(
            patient_id=f"PT-{number}",
            ssn=f"{number:09d}",
            mrn=f"MRN-{number}",
            name=f"Name of {number}",
            address={"street": f"{number} High Street", "city": "Springfield"},
        )

    def run(self, operation: str, calls: int) -> float:
        """Call an operation so many times, in one transaction; return the seconds."""
        if operation == "new connection":
            return self._connect(calls)
        if operation == "rotate":
            return sum(self._rotate() for _ in range(calls))
        self._engine.dispose()  # one server process answers a third slower than another, so each round has new ones
        with self._database.transaction() as tx:
            call = getattr(self, f"_{operation}")
            for _ in range(WARM_UP):
                call(tx, self._next())
            numbers = [self._next() for _ in range(calls)]
            started = time.perf_counter()
            for number in numbers:
                call(tx, number)
            return time.perf_counter() - started

    def _next(self) -> int:
        self._turn += 1
        return self._turn * 7919 % PATIENTS

    def _connect(self, calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            self._engine.dispose()
            with self._engine.connect():
                pass
        return time.perf_counter() - started

    def _rotate(self) -> float:
        """Rotate a table, and return the seconds that its rows took; the proof and the retirement are not counted."""
        from voiceassist_db.rotation import retire, rotate

        database = self._rotating = self._rotating or self._filled()
        report = rotate(database.engine, database.keys)
        assert report.rows == ROTATED
        retire(database.engine, database.keys, grace_days=0)
        return float(report.seconds)

    def _filled(self) -> Any:
        from sqlalchemy import text

        from voiceassist_db import Database, create_engine
        from voiceassist_db.schema import migrate

        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {self._name}"))
        database = Database(create_engine(self._engine.url.set(database=self._name)), Memory())
        migrate(database.engine)
        with database.engine.begin() as connection:
            initialisation().initialise_keys(database.keys.provider, connection)
        with database.transaction() as tx:
            tx.patients.add_many(map(self._new, range(ROTATED)))
        return database

    @staticmethod
    def _get(tx: Any, number: int) -> None:
        assert tx.patients.get(f"PT-{number}").ssn == f"{number:09d}"

    @staticmethod
    def _find(tx: Any, number: int) -> None:
        assert tx.patients.find_by_mrn(f"MRN-{number}").patient_id == f"PT-{number}"

    @staticmethod
    def _update(tx: Any, number: int) -> None:
        tx.patients.update(f"PT-{number}", name=f"Name of {number}", address={"city": "Springfield"})

    def _add(self, tx: Any, _: int) -> None:
        self._added += 1
        tx.patients.add(self._new(self._added))

    def _add_many(self, tx: Any, _: int) -> None:
        first, self._added = self._added, self._added + BULK
        assert tx.patients.add_many(map(self._new, range(first + 1, self._added + 1))) == BULK


def work() -> None:
    """Serve one version: read operations from stdin, answer with seconds."""
    worker = Worker(os.environ["DATABASE_URL"], turn=int(os.environ["TURN"]))
    print("ready", flush=True)
    for line in sys.stdin:
        operation, _, calls = line.strip().rpartition(" ")
        print(worker.run(operation, int(calls)), flush=True)


@contextmanager
def version(source: Path, url: str, turn: int) -> Iterator[subprocess.Popen[str]]:
    """Start a version's process."""
    environment = os.environ | {
        "PYTHONPATH": str(source),
        "DATABASE_URL": url,
        "ENCRYPTION_KEY": os.environ["ENCRYPTION_KEY"],
        "TURN": str(turn),
    }
    command = [sys.executable, "-c", f"import runpy; runpy.run_path({__file__!r})['work']()"]
    with subprocess.Popen(
        command, cwd=source, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"the version in {source} did not start")
        yield process
        process.stdin.close()


def ask(process: subprocess.Popen[str], operation: str) -> float:
    """Let a version do an operation; return the seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{operation} {CALLS[operation]}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    """Compare the working tree with a commit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("commit")
    parser.add_argument("--operation", action="append", choices=[*CALLS], help="may be repeated; all by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    import psycopg

    from voiceassist_db.embedded import EmbeddedPostgres

    os.environ["ENCRYPTION_KEY"] = _key()
    with ExitStack() as stack:
        source = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(source), arguments.commit], check=True)
        stack.callback(subprocess.run, [*git, "remove", "--force", str(source)], check=True)
        server = stack.enter_context(EmbeddedPostgres(settings={"fsync": "off"}))
        urls = {}
        for name in ("before", "now"):
            with psycopg.connect(
                server.url().set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
            ) as admin:
                admin.execute(f"CREATE DATABASE {name}")
            urls[name] = server.url(name).render_as_string(hide_password=False)
        ratios: dict[str, list[float]] = {operation: [] for operation in arguments.operation or CALLS}
        for turn in range(-(-arguments.rounds // PAIR_ROUNDS)):
            with version(source, urls["before"], turn) as before, version(ROOT, urls["now"], turn) as now:
                for operation, found in ratios.items():
                    found.extend(measured({"before": before, "now": now}, operation))
            print(f"{(turn + 1) * PAIR_ROUNDS} rounds", file=sys.stderr, flush=True)
        for operation, found in ratios.items():
            low, middle, high = statistics.quantiles(found, n=4)
            print(f"{operation:<15} {middle:.3f}  ({low:.3f} to {high:.3f})", flush=True)


def measured(versions: Mapping[str, subprocess.Popen[str]], operation: str) -> Iterator[float]:
    """Yield the ratios of one pair of processes."""
    for each in range(PAIR_ROUNDS):
        order = ("before", "now") if each % 2 else ("now", "before")
        seconds = {name: ask(versions[name], operation) for name in order}
        yield seconds["now"] / seconds["before"]


def _key() -> str:
    import base64

    return base64.b64encode(secrets.token_bytes(32)).decode()


if __name__ == "__main__":
    main()
