"""A process that forks while a thread of it asks Vault. Run by the tests, for the threads of pytest must not be forked."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from sqlalchemy.pool import NullPool

from voiceassist_db import create_engine
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import AppRoleLogin, KubernetesLogin, TokenLogin, VaultKeyProvider, tokens

HUNG_S: Final = 300
"""Seconds after which a child is taken for hung. A healthy one needs well under one."""

CHILDREN: Final = 3
FORKS: Final = 40


def digest(keys: KeySet) -> str:
    """Return what tells keys apart and shows nothing of them."""
    return keys.key.check_value("a test").hex()


def login_of(kind: str, *given: str) -> TokenLogin | AppRoleLogin | KubernetesLogin:
    """Return a login by the name of its class."""
    match kind:
        case "TokenLogin":
            return TokenLogin(*given)
        case "AppRoleLogin":
            return AppRoleLogin(*given)
        case _:
            return KubernetesLogin(given[0], Path(given[1]), given[2])


def in_child(work: object) -> int:
    """Fork. The child does the work, says what came of it, and ends; return its process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        signal.alarm(HUNG_S)
        os.write(1, f"child {work()}\n".encode())  # type: ignore[operator]
        code = 0
    except BaseException as error:  # noqa: BLE001  # it is said, and the child ends
        os.write(1, f"child failed: {error!r}\n".encode())
    finally:
        os._exit(code)


def say(text: str) -> None:
    """Write one line at once."""
    os.write(1, f"{text}\n".encode())


def wait_for_all(pids: list[int]) -> None:
    """Wait for children, and name those that did not end by themselves."""
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status):
            say(f"child ended with {os.waitstatus_to_exitcode(status)}")


def fork_in_a_fetch(provider: VaultKeyProvider) -> None:
    """Fork while a thread waits for an answer of Vault."""
    fetched: list[KeySet] = []
    thread = threading.Thread(target=lambda: fetched.append(provider.fetch()))
    thread.start()
    sys.stdin.readline()  # the thread's request has arrived, and its answer is held back
    wait_for_all([in_child(lambda: digest(provider.fetch())) for _ in range(CHILDREN)])
    say("the children have ended")
    thread.join()
    say(f"parent {digest(fetched[0])}")


def fork_in_a_renewal(provider: VaultKeyProvider, url: str) -> None:
    """Fork while a thread renews the keyring."""

    def connect() -> object:
        return create_engine(url, poolclass=NullPool).connect()

    source = KeyringSource(provider, ttl_s=0)
    with connect() as connection:  # type: ignore[attr-defined]
        first = source.keyring(connection)
    say("loaded")
    sys.stdin.readline()  # from now on, answers are held back

    def renewed() -> str:
        with connect() as connection:  # type: ignore[attr-defined]
            return "renewed" if source.keyring(connection) is not first else "kept the parent's keyring"

    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(renewed()))
    thread.start()
    sys.stdin.readline()
    wait_for_all([in_child(renewed) for _ in range(CHILDREN)])
    say("the children have ended")
    thread.join()
    say(f"parent {outcome[0]}")


def fork_often(provider: VaultKeyProvider) -> None:
    """Fork again and again while threads fetch and log in all the time."""
    stop = threading.Event()
    wanted = digest(provider.fetch())
    wrong: list[str] = []

    def fetch() -> None:
        while not stop.is_set():
            if digest(provider.fetch()) != wanted:
                wrong.append("wrong keys")

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    pids = []
    for _ in range(FORKS):
        time.sleep(random.random() / 50)  # noqa: S311  # when is a matter of chance
        pids.append(in_child(lambda: digest(provider.fetch())))
    wait_for_all(pids)
    stop.set()
    for thread in threads:
        thread.join()
    say(f"parent {wrong[0] if wrong else wanted}")


if __name__ == "__main__":
    tokens.LOG_IN_AGAIN = 1.0  # type: ignore[misc]  # each fetch logs in, however long its token lives
    way, address, ca_file, path, url, kind, *given = sys.argv[1:]
    known = VaultKeyProvider(
        address, login_of(kind, *given), path=path, ca_file=Path(ca_file) if ca_file else None, timeout_s=HUNG_S
    )
    match way:
        case "fetch":
            fork_in_a_fetch(known)
        case "renewal":
            fork_in_a_renewal(known, url)
        case "often":
            fork_often(known)
