"""gunicorn imports the application once, which opens and uses the database, and then forks its workers: each gives right answers."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from voiceassist_db import Database, Patient
from voiceassist_db.embedded.process import HOST

WORKERS = 3
REQUESTS = {"sync": 1000, "gthread": 200}
CLIENTS = 6
PATIENTS = 10
TIMEOUT_S = 60


@pytest.fixture
def server_of(database: Database, environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """A function that starts a server with a class of workers, forked from a process that had used the database; it returns its port."""
    with database.transaction() as tx:
        tx.patients.add_many(
            Patient(patient_id=f"PT-{n}", ssn=str(123_450_000 + n), name=f"Name of PT-{n}") for n in range(PATIENTS)
        )
    log = tmp_path / "log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))

        def start(kind: str) -> int:
            listener = stack.enter_context(socket.create_server((HOST, 0)))
            options = [
                f"--workers={WORKERS}",
                f"--worker-class={kind}",
                "--threads=2",
                f"--bind=fd://{listener.fileno()}",
            ]
            server = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "gunicorn",
                    "--preload",
                    "--no-control-socket",
                    *options,
                    "tests.preloaded:application",
                ],
                env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
                pass_fds=[listener.fileno()],
                stdout=output,
                stderr=output,
            )
            stack.callback(server.wait, TIMEOUT_S)
            stack.callback(server.terminate)
            return int(listener.getsockname()[1])

        yield start
    assert "Traceback" not in log.read_text()


def ask(port: int, number: int) -> Any:
    """Ask for a patient; every fifth time, write the patient first. Return the answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        connection.request("POST" if number % 5 == 0 else "GET", f"/PT-{number % PATIENTS}")
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["sync", pytest.param("gthread", marks=pytest.mark.wide)])
def test_each_worker_gives_right_answers(server_of: Callable[[str], int], kind: str) -> None:
    """All answers are of the patient that was asked for, and each worker gave some."""
    port, numbers = server_of(kind), range(REQUESTS[kind])
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda number: ask(port, number), numbers))
    wanted = [[f"PT-{n % PATIENTS}", str(123_450_000 + n % PATIENTS), f"Name of PT-{n % PATIENTS}"] for n in numbers]
    assert [answer[1:] for answer in answers] == wanted
    assert len({answer[0] for answer in answers}) == WORKERS
