"""What a change costs: two versions of this package, measured turn by turn against one server, in one run.

    .venv/bin/python tests/benchmarks/compare_commits.py COMMIT

Prints, for each operation, the time of the working tree over that of the commit: the median of all rounds, and the quartiles.
Each version has a process and a database of its own; both use the same server and the same kind of keys.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROUNDS = 120
CALLS = {"get": 100, "find": 60, "update": 60, "add": 60, "new connection": 12}
WARM_UP = 10
"""Calls until the driver has prepared the statement."""

PATIENTS = 2000
ROOT = Path(__file__).parents[2]


class Worker:
    """The operations of the version that is imported here, on a database of its own."""

    def __init__(self, url: str) -> None:
        from voiceassist_db import Database, Patient, create_engine
        from voiceassist_db.keyring import initialise_keys
        from voiceassist_db.providers.environment import EnvironmentKeyProvider
        from voiceassist_db.schema import migrate

        self._patient = Patient
        self._engine = create_engine(url)
        migrate(self._engine)
        self._database = Database(self._engine, EnvironmentKeyProvider(os.environ["ENCRYPTION_KEY"]))
        with self._engine.begin() as connection:
            initialise_keys(self._database.keys.provider, connection)
        with self._database.transaction() as tx:
            tx.patients.add_many([self._new(n) for n in range(PATIENTS)])
        self._added = PATIENTS
        self._turn = 0

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


def work() -> None:
    """Serve one version: read operations from stdin, answer with seconds."""
    worker = Worker(os.environ["DATABASE_URL"])
    print("ready", flush=True)
    for line in sys.stdin:
        operation, _, calls = line.strip().rpartition(" ")
        print(worker.run(operation, int(calls)), flush=True)


@contextmanager
def version(source: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    """Start a version's process."""
    environment = os.environ | {
        "PYTHONPATH": str(source),
        "DATABASE_URL": url,
        "ENCRYPTION_KEY": os.environ["ENCRYPTION_KEY"],
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
        versions = {}
        for name, place in (("before", source), ("now", ROOT)):
            with psycopg.connect(
                server.url().set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
            ) as admin:
                admin.execute(f"CREATE DATABASE {name}")
            url = server.url(name).render_as_string(hide_password=False)
            versions[name] = stack.enter_context(version(place, url))
        for operation in CALLS:
            ratios = []
            for turn in range(arguments.rounds):
                order = ("before", "now") if turn % 2 else ("now", "before")
                seconds = {name: ask(versions[name], operation) for name in order}
                ratios.append(seconds["now"] / seconds["before"])
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"{operation:<15} {middle:.3f}  ({low:.3f} to {high:.3f})", flush=True)


def _key() -> str:
    import base64

    return base64.b64encode(secrets.token_bytes(32)).decode()


if __name__ == "__main__":
    main()
