"""The process of the concurrent application. It imports little, so as to start at once."""

from __future__ import annotations

import random
import signal
import time
from multiprocessing.connection import Connection
from typing import Any, Final

import psycopg

IDS: Final = 5000


def serve(dsn: str, parent: Connection) -> None:
    """Work on each table that the parent names, from when this process is ready until the parent says so; None ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the parent, which ends this process
    with psycopg.connect(dsn, autocommit=True) as connection:
        while table := parent.recv():
            parent.send(_work(connection, table, parent))


def _work(connection: psycopg.Connection[Any], table: str, parent: Connection) -> tuple[list[float], list[float]]:
    """Read and write single rows; return the milliseconds of each read and of each write."""
    ids = [row[0] for row in connection.execute(f"SELECT id FROM {table} ORDER BY random() LIMIT {IDS}").fetchall()]
    statements = (
        f"SELECT * FROM {table} WHERE id = %s",
        f"UPDATE {table} SET created_at = clock_timestamp() WHERE id = %s",
    )
    taken: tuple[list[float], list[float]] = ([], [])
    chance = random.Random(1)  # noqa: S311  # to be repeated, not to be secret
    parent.send("ready")
    while not parent.poll():
        for statement, milliseconds in zip(statements, taken, strict=True):
            chosen = chance.choice(ids)
            started = time.perf_counter()
            connection.execute(statement, [chosen])
            milliseconds.append(1000 * (time.perf_counter() - started))
    parent.recv()
    return taken
