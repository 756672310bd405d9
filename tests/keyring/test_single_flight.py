"""One fetch at a time serves all callers, its failure too; the pauses between fetches bound the requests and the errors."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clock import Clock
from tests.forking import Child, fork_in_c
from voiceassist_db.errors import (
    KeyStoreError,
    KeyStoreForbiddenError,
    KeyStoreUnavailableError,
    UnsafeConnectionError,
    VoiceAssistDBError,
)
from voiceassist_db.forks import ProcessLock
from voiceassist_db.keyring.single_flight import (
    DEFAULT_TIMEOUT_S,
    FAIL_FAST_S,
    FIRST_RETRY_S,
    RETRY_S,
    Fetched,
    SingleFlight,
    wait_in_thread,
)
from voiceassist_db.keys import KeySet

CALLERS = 50
KEYS = KeySet.generate()
DOWN, FORBIDDEN = KeyStoreUnavailableError("down"), KeyStoreForbiddenError("no")
LONG_S = 60.0


class Store:
    """A key store in this process, which fails or hangs when told to: what is tried here is who asks it, and when."""

    def __init__(self) -> None:
        self.fetches = 0
        self.failure: BaseException | None = None
        self.answers = threading.Event()
        self.answers.set()

    def fetch(self) -> KeySet:
        self.fetches += 1
        assert self.answers.wait(LONG_S)
        if self.failure is not None:
            raise self.failure
        return KEYS

    def create(self, keys: KeySet) -> None:
        raise NotImplementedError

    def replace(self, old: KeySet, new: KeySet) -> None:
        raise NotImplementedError


@contextmanager
def stopped_clock() -> Iterator[Clock]:
    """Replace the time."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voiceassist_db.keyring.single_flight.time", clock)
        yield clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    """A clock that the test controls."""
    with stopped_clock() as made:
        yield made


def ask(flights: SingleFlight, after: int = 0) -> Fetched | VoiceAssistDBError:
    """Fetch, and return what came or the error."""
    try:
        return flights.fetch(after=after, deadline=flights.deadline())
    except VoiceAssistDBError as error:
        return error


def all_at_once(store: Store) -> list[Fetched | VoiceAssistDBError]:
    """Have many threads fetch while the store does not answer yet, and return what each got."""
    waiting = threading.Semaphore(0)

    def wait(landed: Future[None], seconds: float) -> None:
        waiting.release()
        wait_in_thread(landed, LONG_S)

    flights = SingleFlight(store, wait)
    store.answers.clear()
    outcomes: list[Fetched | VoiceAssistDBError] = []
    threads = [threading.Thread(target=lambda: outcomes.append(ask(flights))) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=LONG_S)
    store.answers.set()
    for thread in threads:
        thread.join(LONG_S)
    return outcomes


def test_all_callers_share_one_fetch() -> None:
    """Fifty threads that come while the store is asked get the same keys from one request."""
    store = Store()
    outcomes = all_at_once(store)
    assert store.fetches == 1
    assert [each.number for each in outcomes if isinstance(each, Fetched)] == [1] * CALLERS


@pytest.mark.parametrize("failure", [DOWN, FORBIDDEN, UnsafeConnectionError("elsewhere")])
def test_all_callers_share_one_failure(failure: VoiceAssistDBError) -> None:
    """Each gets an exception of its own, so that no traceback grows; the store was asked once."""
    store = Store()
    store.failure = failure
    outcomes = all_at_once(store)
    assert store.fetches == 1
    assert {(type(each), str(each)) for each in outcomes} == {(type(failure), str(failure))}
    assert len({id(each) for each in outcomes}) == CALLERS


def test_the_first_pause_is_short_and_the_next_ones_are_a_second(clock: Clock) -> None:
    """During a pause callers get the failure at once; late in a long one they wait for the next fetch instead."""
    store = Store()
    store.failure = DOWN
    flights = SingleFlight(store, wait_in_thread)
    assert isinstance(ask(flights), KeyStoreUnavailableError)
    clock.now += FIRST_RETRY_S * 0.9
    assert isinstance(ask(flights), KeyStoreUnavailableError)
    assert store.fetches == 1
    clock.now += FIRST_RETRY_S * 0.2
    assert isinstance(ask(flights), KeyStoreUnavailableError)
    assert store.fetches == 2
    failed_at = clock.now
    store.failure = None
    clock.now += FAIL_FAST_S * 0.9
    assert isinstance(ask(flights), KeyStoreUnavailableError)
    clock.now += FAIL_FAST_S * 0.2
    assert isinstance(ask(flights), Fetched)
    assert clock.now == pytest.approx(failed_at + RETRY_S)
    store.failure = DOWN
    assert isinstance(ask(flights, after=3), KeyStoreUnavailableError)
    clock.now += FIRST_RETRY_S
    store.failure = None
    assert isinstance(ask(flights, after=3), Fetched)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from([DOWN, FORBIDDEN]))
def test_requests_and_errors_are_bounded_whenever_callers_come(data: st.DataObject, failure: KeyStoreError) -> None:
    """At most two fetches begin in any second of an outage, one of a refusal; half a second after it, nobody gets an error."""
    pauses = st.lists(st.floats(0.001, 1.5), min_size=1, max_size=30)
    with stopped_clock() as clock:
        begun: list[float] = []

        class Timed(Store):
            def fetch(self) -> KeySet:
                begun.append(clock.now)
                return super().fetch()

        store = Timed()
        store.failure = failure
        flights = SingleFlight(store, wait_in_thread)
        for pause_s in data.draw(pauses, label="while it is away"):
            clock.now += pause_s
            assert isinstance(ask(flights), type(failure))
        limit = 2 if failure is DOWN else 1
        for start in begun:
            assert sum(start <= each < start + 1 - 1e-9 for each in begun) <= limit
        store.failure = None
        back_at = clock.now
        for pause_s in data.draw(pauses, label="after it"):
            clock.now += pause_s
            came_at = clock.now
            outcome = ask(flights)
            assert isinstance(outcome, Fetched) or came_at < back_at + 0.5


def test_a_store_that_hangs_holds_no_caller_longer_than_its_timeout(clock: Clock) -> None:
    """Those who came wait until the timeout is over; who comes later gets the error at once, and one fetch stays under way."""
    waited: list[float] = []

    def wait(landed: Future[None], seconds: float) -> None:
        waited.append(seconds)
        clock.now += seconds

    store = Store()
    store.answers.clear()
    flights = SingleFlight(store, wait)
    outcomes = []
    for pause_s in (0.0, 1.0, 1.0):
        clock.now += pause_s
        outcomes.append(ask(flights))
    assert waited == [DEFAULT_TIMEOUT_S, 0, 0]
    assert all(isinstance(each, KeyStoreUnavailableError) for each in outcomes)
    assert "did not answer within 5 s" in str(outcomes[0])
    assert flights.begun == 1
    store.answers.set()
    joined("voiceassist-db-keys")
    assert flights.last(after=0) is not None


def test_a_caller_waits_for_two_fetches_no_longer_than_for_one(clock: Clock) -> None:
    """A caller to whom the fetch under way is too old waits for the next one; its own deadline covers both."""
    waited: list[float] = []

    def wait(landed: Future[None], seconds: float) -> None:
        waited.append(seconds)
        clock.now += 4
        if len(waited) == 1:
            store.answers.set()
            wait_in_thread(landed, LONG_S)
            store.answers.clear()

    store = Store()
    store.answers.clear()
    flights = SingleFlight(store, wait)
    assert isinstance(ask(flights, after=1), KeyStoreUnavailableError)
    assert waited == [DEFAULT_TIMEOUT_S, DEFAULT_TIMEOUT_S - 4]
    store.answers.set()
    joined("voiceassist-db-keys")


def test_no_thread_is_left() -> None:
    """Each fetch has a thread of its own, which ends with it."""
    flights = SingleFlight(Store(), wait_in_thread)
    for number in range(20):
        ask(flights, after=number)
    joined("voiceassist-db-keys")
    assert flights.begun == 20


def joined(name: str) -> None:
    """Wait until the threads of a name have ended."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(LONG_S)
            assert not thread.is_alive()


def test_without_a_new_thread_the_caller_fetches_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the interpreter ends, no thread can be started, and a last write still gets its keys."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert isinstance(ask(SingleFlight(Store(), wait_in_thread)), Fetched)


@pytest.mark.parametrize("later_s", [0, DEFAULT_TIMEOUT_S])
def test_the_next_caller_begins_a_fetch_whose_caller_was_interrupted(clock: Clock, later_s: float) -> None:
    """Nobody else would ever begin it, and each caller would wait for its whole timeout in vain."""
    late = []

    def interrupted(thread: threading.Thread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    store = Store()
    flights = SingleFlight(store, wait_in_thread)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "start", interrupted)
        ask(flights)
    clock.now += later_s
    assert isinstance(ask(flights), Fetched)
    late[0].run()  # as a thread does that the machine starts too late
    assert store.fetches == 1


def test_no_interrupt_leaves_the_lock_of_all_callers_locked() -> None:
    """Wherever Python lets one in as the lock is acquired, a function of C has just returned."""
    came = []

    def interrupt(frame: FrameType, event: str, function: Any) -> None:
        if (
            event == "c_return"
            and function.__name__ in {"acquire", "__enter__"}
            and "voiceassist_db" in frame.f_code.co_filename
        ):
            came.append(frame.f_code.co_name)
            raise KeyboardInterrupt

    flights = SingleFlight(Store(), wait_in_thread)
    before = sys.getprofile()
    sys.setprofile(interrupt)
    try:
        ask(flights)
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(before)
    assert flights._lock.acquire(blocking=False), came


def test_an_error_that_is_not_ours_is_told_by_its_name_alone() -> None:
    """A provider of somebody else's may raise anything, whose text may hold a secret; nobody hangs, and nobody is told the text."""
    store = Store()
    store.failure = LookupError("s3cret")
    outcome = ask(SingleFlight(store, wait_in_thread))
    assert isinstance(outcome, KeyStoreError)
    assert "LookupError" in str(outcome)
    assert "s3cret" not in f"{outcome!r} {vars(outcome)} {outcome.__cause__} {outcome.__context__}"


@pytest.mark.parametrize("fork", [None, fork_in_c], ids=["Python's", "C's"])
def test_a_child_forked_during_a_fetch_makes_its_own(fork: Callable[[], int] | None) -> None:
    """The thread that fetches does not exist in the child, nor does a lock that another thread held."""
    store = Store()
    store.answers.clear()
    flights = SingleFlight(store, wait_in_thread)
    thread = threading.Thread(target=ask, args=(flights,))
    thread.start()
    # Until it waits, and no longer competes for the interpreter's own lock, which a fork in C would copy.
    while not store.answers._cond._waiters:  # type: ignore[attr-defined]  # of the standard library
        time.sleep(0.001)
    time.sleep(0.05)

    def fetch() -> int:
        store.answers = threading.Event()
        store.answers.set()
        outcome = ask(flights)
        assert isinstance(outcome, Fetched)
        return outcome.number

    with flights._lock:
        child = Child(fetch, fork) if fork else Child(fetch)
    assert child.result() == 2
    store.answers.set()
    thread.join(LONG_S)
    assert flights.last(after=0) is not None


def test_a_lock_that_another_thread_holds_at_a_fork_in_c_hangs_no_child() -> None:
    """Such a fork runs no hook of Python, so that each lock looks for itself whether it is another process's."""
    lock, held, done = ProcessLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(LONG_S)

    def take() -> bool:
        with lock:
            return lock.acquire(blocking=False)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(LONG_S)
    try:
        assert Child(take, fork_in_c).result() is False
    finally:
        done.set()
        thread.join(LONG_S)
