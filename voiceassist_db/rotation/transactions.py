"""Transactions of a run: short, idempotent, and so tried again where their failure may pass, a COMMIT without an answer included.

Owns how long and how often. What a transaction does, and what becomes of a failure that stays, is its caller's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine

from voiceassist_db.errors import DatabaseError, DatabaseUnavailableError, TransactionConflictError
from voiceassist_db.execution import translated
from voiceassist_db.waits import holders

logger = logging.getLogger(__name__)

LOCK_NOT_AVAILABLE: Final = "55P03"

RETRY_FOR_S: Final = 60.0
FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0

AWAY: Final = (DatabaseUnavailableError,)
AWAY_OR_BUSY: Final = (DatabaseUnavailableError, TransactionConflictError)

Result = TypeVar("Result")


def read_committed(engine: Engine) -> Engine:
    """Return the same engine, whose transactions see what was committed before each statement, whatever the default is.

    Who waits for the lease must see who took it; and a heartbeat may change a row that another one has changed.
    """
    return engine.execution_options(isolation_level="READ COMMITTED")


def persistently(
    engine: Engine,
    work: Callable[[Connection], Result],
    *,
    what: str,
    retried: tuple[type[DatabaseError], ...] = AWAY_OR_BUSY,
    oid: int | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Result:
    """Run ``work`` in a transaction, and again while it fails for a reason that may pass.

    Args:
        engine: An engine whose connections may receive keys.
        work: What to do; it may be done twice, where the answer to its COMMIT was lost.
        what: What it is called in the log.
        retried: Failures that may pass.
        oid: The relation whose locks it waits for, so that a wait in vain names who has them.
        is_stopping: Says whether the run shall end; then nothing is tried again.

    Raises:
        DatabaseError: It went on failing.
    """
    pause_s, give_up = FIRST_PAUSE_S, time.monotonic() + RETRY_FOR_S
    while True:
        try:
            with translated(), engine.begin() as connection:
                return work(connection)
        except retried as error:
            if is_stopping() or time.monotonic() > give_up:
                if oid is None or error.sqlstate != LOCK_NOT_AVAILABLE:
                    raise
                break
            logger.warning("%s is tried again: %s", what, error)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, MAX_PAUSE_S)
    with translated(), engine.begin() as connection:
        who = "; ".join(map(str, holders(connection, oid)))
    raise TransactionConflictError(
        f"{what} waited {RETRY_FOR_S:.0f} s for a lock (SQLSTATE {LOCK_NOT_AVAILABLE}) of {who or 'a transaction that has just ended'}: run this "
        "again when it has ended",
        sqlstate=LOCK_NOT_AVAILABLE,
    )
