"""Fifty clients at once, three workers, a rotation and a retirement: every answer must be right.

Run by ``test_service.py`` inside ``voiceassist-db dev``, which gives it servers, roles and keys.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx2 as httpx

CLIENTS = 50
ROUNDS = 3  # of each client before the rotation begins, and again after the retirement
FIRST = datetime(2026, 5, 1, 8, tzinfo=UTC)


def run(*command: str, role: str) -> None:
    """Run a command as one of the roles."""
    subprocess.run(command, check=True, env=os.environ | {"DATABASE_URL": os.environ[f"{role}_DATABASE_URL"]})


@contextmanager
def workers() -> Iterator[str]:
    """Serve the clinic by three workers, as the application's role."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    command = ["gunicorn", "clinic.app:create_app()", "-w", "3", "-k", "uvicorn_worker.UvicornWorker", "-b", address]
    with subprocess.Popen([sys.executable, "-m", *command, "--log-level", "warning", "--timeout", "120"]) as server:
        try:
            yield f"http://{address}"
        finally:
            server.terminate()


async def client(http: httpx.AsyncClient, doctor: int, number: int, begun: asyncio.Barrier, over: asyncio.Event) -> int:
    """Add, read, find and list visits until the work of the keys is over; return how many answers were right."""
    right = each = after = 0
    while after < ROUNDS:
        patient = f"Patient {number} {each}"
        moment = f"{FIRST + timedelta(days=number, minutes=each):%Y-%m-%dT%H:%M:%SZ}"
        visit = {"doctor": doctor, "starts_at": moment, "patient": patient, "reason": f"reason {number}.{each}"}
        id_ = (await http.post("/visits", json=visit)).raise_for_status().json()
        read = (await http.get(f"/visits/{id_}", params={"doctor": doctor})).raise_for_status().json()
        found = (await http.get("/visits", params={"patient": patient.upper()})).raise_for_status().json()
        listed = (await http.get(f"/doctors/{doctor}/visits", params={"limit": 5})).raise_for_status().json()
        assert read == visit | {"id": id_}, read
        assert [one["id"] for one in found] == [id_], found
        assert listed == sorted(listed, key=lambda one: one["starts_at"]), listed
        right, each, after = right + 4, each + 1, after + over.is_set()
        if each == ROUNDS:
            await begun.wait()
    return right


async def first_doctor(http: httpx.AsyncClient) -> int:
    """Add a doctor, once the workers are up."""
    for _ in range(600):
        try:
            answer = await http.post("/doctors", params={"name": "Dr. Grey"})
        except httpx.TransportError:
            await asyncio.sleep(0.1)
        else:
            return int(answer.raise_for_status().json())
    raise SystemExit("the workers did not start within a minute")


async def trial(address: str) -> int:
    """Let the clients work while the key is rotated and the one before retired."""
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:
        doctor = await first_doctor(http)
        begun, over = asyncio.Barrier(CLIENTS + 1), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            clients = [tasks.create_task(client(http, doctor, number, begun, over)) for number in range(CLIENTS)]
            await begun.wait()
            await asyncio.to_thread(run, "voiceassist-db", "rotate", role="ROTATOR")
            await asyncio.to_thread(run, "voiceassist-db", "retire", "--grace-days", "0", role="OWNER")
            over.set()
        return sum(each.result() for each in clients)


def main() -> None:
    """Migrate, serve, and print how many answers were right."""
    run("alembic", "upgrade", "head", role="OWNER")
    run("voiceassist-db", "provision", role="SUPERUSER")
    with workers() as address:
        right = asyncio.run(trial(address))
    run("voiceassist-db", "verify", role="ROTATOR")
    print(f"{right} answers were right, and none was wrong")


if __name__ == "__main__":
    main()
