"""No statement with a key runs in parallel: for its workers the server would copy the key into a file of its data directory."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import VaultServer, plain, throwaway_server
from tests.safety.conftest import ROLES, Deployment
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.embedded.accounts import server_account
from voiceassist_db.embedded.binaries import find_postgres
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.rotation import rotate, rotate_index_key
from voiceassist_db.verification import verify

WORKER = "parallel worker for PID"
WAIT_S = 60


@pytest.fixture(scope="module")
def parallel(vault: VaultServer) -> Iterator[Deployment]:
    """A server that runs whatever it can in parallel, with its shared memory in files, and says when it starts a worker."""
    major = find_postgres(server_account()).major
    settings = {
        "dynamic_shared_memory_type": "mmap",
        "debug_parallel_query" if major >= 16 else "force_parallel_mode": "on",
        "min_parallel_table_scan_size": "0",
        "parallel_setup_cost": "0",
        "parallel_tuple_cost": "0",
        "max_parallel_workers_per_gather": "2",
        "log_min_messages": "debug1",
    }
    with throwaway_server(settings) as server:
        path = f"test/{secrets.token_hex(6)}"
        provider = VaultKeyProvider(vault.address, TokenLogin(vault.root_token), mount="secret", path=path)
        made = Deployment(server, provider, server.log)
        yield made
        made.admin.close()


def workers(deployment: Deployment) -> int:
    """Return how many parallel workers the server has started."""
    return deployment.server.log.read_text(encoding="utf-8", errors="replace").count(WORKER)


@pytest.mark.wide
def test_no_statement_of_the_product_runs_in_parallel(parallel: Deployment) -> None:
    """Reads, searches, pages, both rotations and the verification, on a server that does so for everybody else."""
    started = workers(parallel)
    app, rotator = create_engine(parallel.url()), create_engine(parallel.url(ROLES.rotator))
    database = Database(app, parallel.provider)
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n}", ssn=f"9{n:08d}", name="Zoe") for n in range(300))
    with database.transaction() as tx:
        assert tx.patients.get("PT-7").ssn == "900000007"
        assert len(tx.patients.get_many([f"PT-{n}" for n in range(300)])) == 300
        assert len(tx.patients.find_by_name("zoe")) == 300
        assert len(tx.patients.page(limit=300)) == 300
        tx.patients.update("PT-7", name="Zoë")
        tx.patients.delete("PT-8")
    assert rotate(rotator, database.keys).done
    assert rotate_index_key(rotator, database.keys).done
    assert [each.failed for each in verify(app, database.keys)] == [0, 0]
    app.dispose()
    rotator.dispose()
    assert workers(parallel) == started


def test_elsewhere_a_key_lies_in_a_file(parallel: Deployment) -> None:
    """The control: a role that is not provisioned runs a decryption in parallel, and its key can be read from pg_dynshmem."""
    key = secrets.token_hex(16)
    started = workers(parallel)
    parallel.admin.execute("CREATE TABLE guide AS SELECT pgcrypto.pgp_sym_encrypt('123-45-6789', %s) AS ssn", [key])
    directory = parallel.server.log.parent / "postgres-data" / "pg_dynshmem"
    found = threading.Event()

    def search() -> None:
        while not found.is_set():
            for file in directory.iterdir():
                try:
                    if key.encode() in file.read_bytes():
                        found.set()
                except FileNotFoundError:
                    continue

    searching = threading.Thread(target=search, daemon=True)
    searching.start()
    with psycopg.connect(plain(parallel.server.url()), autocommit=True) as superuser:
        for _ in range(WAIT_S * 10):
            superuser.execute("SELECT pgcrypto.pgp_sym_decrypt(ssn, %s), pg_sleep(0.1) FROM guide", [key])
            if found.is_set():
                break
    assert found.is_set()
    searching.join()
    assert workers(parallel) > started
    parallel.admin.execute("DROP TABLE guide")
