"""A control beside the service: a plain connection of psycopg and a plain client of hvac, which ask all the time.

They say when a server was back. A stall of the whole machine is seen in them too. When its standard input ends, it writes one JSON
object to a file: for each server the questions, as their beginning, their end and whether the server answered. Times are of
``time.monotonic()``, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import hvac
import psycopg
import requests

from voiceassist_db.config import DEFAULT_VAULT_PATH

PAUSE_S: Final = 0.01
TIMEOUT_S: Final = 0.25
"""How long a Vault that hangs is waited for."""

NO_ANSWER: Final = (psycopg.Error, hvac.exceptions.VaultError, requests.RequestException)


class PlainDatabase:
    """One connection, which is opened again once it is lost."""

    def __init__(self) -> None:
        self._connection: psycopg.Connection[Any] | None = None

    def ask(self) -> None:
        """Ask the server."""
        if self._connection is None:
            self._connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, connect_timeout=2)
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self._connection.close()
            self._connection = None
            raise


class PlainVault:
    """One client, which reads the secret that the service needs."""

    def __init__(self) -> None:
        self._client = hvac.Client(os.environ["VAULT_ADDR"], os.environ["VAULT_TOKEN"], timeout=TIMEOUT_S)
        self._mount, _, self._path = DEFAULT_VAULT_PATH.partition("/")

    def ask(self) -> None:
        """Ask the server."""
        self._client.secrets.kv.v2.read_secret_version(
            self._path, mount_point=self._mount, raise_on_deleted_version=True
        )


def asked(ask: Callable[[], None], stop: threading.Event, answers: list[tuple[float, float, bool]]) -> None:
    """Ask until the stop, and note each answer."""
    while not stop.wait(PAUSE_S):
        began = time.monotonic()
        try:
            ask()
            is_answered = True
        except NO_ANSWER:
            is_answered = False
        answers.append((began, time.monotonic(), is_answered))


def main(file: str) -> None:
    """Ask both until standard input ends."""
    stop = threading.Event()
    answers: dict[str, list[tuple[float, float, bool]]] = {"PostgreSQL": [], "Vault": []}
    threads = [
        threading.Thread(target=asked, args=(ask, stop, answers[name]))
        for name, ask in (("PostgreSQL", PlainDatabase().ask), ("Vault", PlainVault().ask))
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    Path(file).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
