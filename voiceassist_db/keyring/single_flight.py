"""One fetch of the keys at a time, which all threads and tasks of a process share.

Owns when the key store is asked, how long callers wait for it, and what a failure means to the callers that come next. Knows no
database: nobody needs a connection to wait here.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Final

from voiceassist_db.errors import (
    KeysDeletedError,
    KeysNotFoundError,
    KeyStoreAuthenticationError,
    KeyStoreError,
    KeyStoreForbiddenError,
    KeyStoreUnavailableError,
    MalformedKeyError,
    VoiceAssistDBError,
)
from voiceassist_db.forks import ProcessLock
from voiceassist_db.keys import KeyProvider, KeySet
from voiceassist_db.pacing import Pace

REFUSALS: Final = (
    KeysDeletedError,
    KeysNotFoundError,
    KeyStoreAuthenticationError,
    KeyStoreForbiddenError,
    MalformedKeyError,
)
"""A store that answers and says no. Every other failure is an outage, which keys that were fetched before outlast."""

DEFAULT_TIMEOUT_S: Final = 5.0
"""How long callers wait for a provider that has no ``timeout_s`` of its own."""

FIRST_RETRY_S: Final = 0.1
"""Pause after the first failure of an outage: a single lost answer costs no more."""

RETRY_S: Final = 1.0
"""Pause after a refusal, and after the second failure of an outage."""

FAIL_FAST_S: Final = 0.4
"""How long after a failure a caller gets it at once. A caller that comes later waits for the next fetch, which then is near.

So nobody sees a failure more than this time after the store is back, and callers do not pile up while it is away.
"""

SHORT_PATIENCE_S: Final = 0.5
"""How long callers wait for a fetch that follows a failure, from when two requests may be sent: it may be a login and a read.

A store that hangs must not hold each of them for its whole timeout.
"""

FORGET_AFTER_S: Final = 10.0
"""After this time without a fetch, the last failure says nothing about the store any more."""

Wait = Callable[[Future[None], float], object]
"""Waits until a future is done, at most for some seconds, and raises nothing of its own."""


def wait_in_thread(landed: Future[None], seconds: float) -> None:
    """Block this thread until a future is done."""
    wait([landed], seconds)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one fetch brought.

    Attributes:
        number: Number of the fetch, from 1.
        keys: The keys.
        at: When they came, as of ``time.monotonic()``.
    """

    number: int
    keys: KeySet
    at: float


@dataclass(frozen=True, slots=True)
class _Failure:
    """What the last fetch failed with. Never raised itself: it would gather the frames of every caller that met it."""

    error: VoiceAssistDBError
    fast_until: float
    forgotten_at: float

    def again(self) -> VoiceAssistDBError:
        return copy.copy(self.error)


@dataclass(slots=True)
class _Flight:
    """One fetch under way.

    Attributes:
        number: Its number.
        begins_at: When the store is asked.
        gives_up_at: Until when callers wait.
        overdue: What they get then.
        pid: The process whose thread runs it; a forked child has no such thread.
        landed: Done when the fetch is.
        outcome: What it brought, or failed with.
        is_begun: Whether a thread runs it. An interrupt can keep the caller that made the flight from starting one.
    """

    number: int
    begins_at: float
    gives_up_at: float
    overdue: VoiceAssistDBError
    pid: int = field(default_factory=os.getpid)
    landed: Future[None] = field(default_factory=Future)
    outcome: Fetched | VoiceAssistDBError | None = None
    is_begun: bool = False

    def __post_init__(self) -> None:
        self.landed.set_running_or_notify_cancel()  # a task that is cancelled while it waits cannot cancel it for the others


class SingleFlight:
    """Asks a key store for all callers of a process, one fetch at a time, each in a short-lived thread of its own.

    The thread is neither a caller's, whose interrupt or cancellation would fail the others, nor the event loop's executor's, which
    may be full of callers that wait.

    Args:
        provider: The key store. Its ``timeout_s``, where it has one, limits how long callers wait.
        wait: How to wait for a future.
    """

    def __init__(self, provider: KeyProvider, wait: Wait) -> None:
        self._provider = provider
        self._wait = wait
        self._timeout_s: float = getattr(provider, "timeout_s", DEFAULT_TIMEOUT_S)
        self._lock = ProcessLock()
        self._flight: _Flight | None = None
        self._last: Fetched | None = None
        self._failure: _Failure | None = None
        self._pace = Pace()
        self._not_before = 0.0
        self.begun = 0

    def last(self, *, after: int) -> Fetched | None:
        """Return what the last successful fetch brought, if its number is above ``after``."""
        last = self._last
        return last if last is not None and last.number > after else None

    def deadline(self) -> float:
        """Return until when a caller that comes now may wait."""
        return time.monotonic() + self._timeout_s

    def rest_of(self, deadline: float | None) -> float:
        """Return until when a caller may wait that had a deadline before it took a connection.

        While the store is known to be away, its waits count as one: others may have held the connections that it waited for, while they
        waited for the store. Otherwise it did not wait for the store.

        Args:
            deadline: That deadline; None for none.
        """
        failure = self._failure
        if deadline is not None and failure is not None and time.monotonic() < failure.forgotten_at:
            return deadline
        return self.deadline()

    def fetch(self, *, after: int, deadline: float, waits: bool = True) -> Fetched:
        """Join the fetch that is under way, or begin one, until one with a number above ``after`` has brought the keys.

        Args:
            after: A fetch up to this number is too old.
            deadline: Until when this caller waits.
            waits: False: after a failure, the store is asked again, and the caller does not wait for the answer.

        Raises:
            VoiceAssistDBError: The fetch failed, or has not come back in time; or the one before failed just now.
        """
        while True:
            flight = self._joined(waits=waits)
            self._wait(flight.landed, max(0.0, min(flight.gives_up_at, deadline) - time.monotonic()))
            outcome = flight.outcome
            if outcome is None:
                raise copy.copy(flight.overdue)
            if isinstance(outcome, VoiceAssistDBError):
                raise copy.copy(outcome)
            if outcome.number > after:
                return outcome

    def pause(self) -> None:
        """Delay the next fetch: the last one was of no use."""
        self._not_before = max(self._not_before, time.monotonic() + RETRY_S)

    def _joined(self, *, waits: bool) -> _Flight:
        """Return the flight that is under way, or begin one.

        Raises:
            VoiceAssistDBError: There is no point in waiting.
        """
        with self._lock.own:
            now, failure, flight = time.monotonic(), self._failure, self._flight
            if failure is not None and now < failure.fast_until:
                raise failure.again()
            if flight is None or flight.pid != os.getpid() or (now >= flight.gives_up_at and not flight.is_begun):
                if failure is not None and now >= failure.forgotten_at:
                    failure = self._failure = None
                flight = self._flight = self._new(now)
        if not flight.is_begun:
            self._begin(flight)
        if failure is not None and not waits and not flight.landed.done():
            raise failure.again()
        return flight

    def _new(self, now: float) -> _Flight:
        self.begun += 1
        begins_at = max(now, self._not_before)
        if self._failure is not None:
            patience_s = SHORT_PATIENCE_S + max(0.0, self._pace.free_at() - begins_at)
            return _Flight(self.begun, begins_at, begins_at + min(patience_s, self._timeout_s), self._failure.error)
        overdue = KeyStoreUnavailableError(
            f"the key store did not answer within {self._timeout_s:g} s: check that it runs and how fast it answers"
        )
        return _Flight(self.begun, begins_at, begins_at + self._timeout_s, overdue)

    def _begin(self, flight: _Flight) -> None:
        """Start a thread for a flight. Of several all but the first end at once, as does one for a flight that was given up."""
        try:
            threading.Thread(target=self._run, args=(flight,), name="voiceassist-db-keys", daemon=True).start()
        except RuntimeError:  # there can be no more threads, as when the interpreter ends
            self._run(flight)

    def _run(self, flight: _Flight) -> None:
        with self._lock.own:
            if flight.is_begun or self._flight is not flight:
                return
            flight.is_begun = True
        try:
            time.sleep(max(0.0, flight.begins_at - time.monotonic()))
            with self._pace.applied():
                outcome: KeySet | VoiceAssistDBError = self._provider.fetch()
        except VoiceAssistDBError as error:
            outcome = copy.copy(error)
        except BaseException as error:
            # Its text may hold a secret. The protocol asks a provider for errors of ours.
            outcome = KeyStoreError(
                f"the key store's provider failed with {type(error).__name__}: call its fetch() to see why"
            )
            if not isinstance(error, Exception):
                self._land(flight, outcome)
                raise
        self._land(flight, outcome)

    def _land(self, flight: _Flight, outcome: KeySet | VoiceAssistDBError) -> None:
        with self._lock.own:
            now = time.monotonic()
            if self._flight is flight:
                self._flight = None
            if isinstance(outcome, KeySet):
                flight.outcome = self._last = Fetched(flight.number, outcome, now)
                self._failure = None
            else:
                flight.outcome = outcome
                is_first = self._failure is None and not isinstance(outcome, REFUSALS)
                pause_s = FIRST_RETRY_S if is_first else RETRY_S
                self._not_before = now + pause_s
                self._failure = _Failure(outcome, now + min(pause_s, FAIL_FAST_S), now + FORGET_AFTER_S)
        flight.landed.set_result(None)
