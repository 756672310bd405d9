"""No key and no patient's value reaches a place where it does not belong, on a server and in a program that say all they can."""

from __future__ import annotations

import logging
import secrets
import warnings
from collections.abc import Iterator

import pytest

from tests.conftest import VaultServer
from tests.secrecy.failures import fail_in_every_way
from tests.secrecy.leaks import PREPARATIONS, SURFACES
from tests.secrecy.plans import encrypting_statements, stored_in_the_clear
from tests.secrecy.printing import Printed
from tests.secrecy.product import Product
from tests.secrecy.scanner import Scanner
from tests.secrecy.server import LOGS, talkative_server
from tests.secrecy.surfaces import Surface, Trial, collected
from tests.secrecy.values import Secrets
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider

pytestmark = pytest.mark.wide

CASES = [(surface, place) for surface in SURFACES for place in surface.places]

TRACES = {
    **dict.fromkeys(LOGS, ("UPDATE patient_data SET ", "pgcrypto.pgp_sym_encrypt(", "deadlock detected")),
    "pg_stat_statements": ("pgcrypto.pgp_sym_decrypt(stored.", "INSERT INTO patient_data "),
    "pg_stat_activity": ("UPDATE patient_data SET ", "pgcrypto.pgp_sym_encrypt("),
    "pg_prepared_statements": ("pgcrypto.pgp_sym_decrypt(stored.", "INSERT INTO patient_data "),
    "pg_cursors": ("SELECT statement FROM pg_cursors",),
    "process titles": ("voiceassist_app secrecy", "voiceassist_rotator secrecy", "UPDATE waiting"),
    "arguments of processes": ("rotate_keys.py",),
    "environments of processes": ("VAULT_TOKEN",),
    "key_rotation_failures": ("patient_data,", "39000"),
    "key_rotations": ("encryption", "index", "retirement"),
    "encryption_keys": ("retired", "current"),
    "index_keys": ("retired", "current"),
    "pg_constraint": ("key_version >= ",),
    "WAL": ("PT-1200",),
    "tables' files": ("PT-1200",),
    "logical decoding": ("patient_data: UPDATE", "clinical_notes: INSERT"),
    "pgbouncer's log": ("secrecy/voiceassist_app",),
    "notices to the client": ("pgcrypto.pgp_sym_decrypt(stored.",),
    "application's log": ("UPDATE patient_data", "GET /v1/secret/data/secrecy/"),
    "arguments of log records": ("UPDATE patient_data", "/v1/secret/data/secrecy/"),
    "standard output of commands": ("quarantined", "unchanged", "retired"),
    "standard error of commands": ("line 42: ssn must have",),
    "errors: str": ("somebody moved it", "another row of patient_data already has"),
    "errors: traceback": ("pgcrypto/codec.py", "prepared.py", "KeyboardInterrupt"),
    "errors: traceback with local variables": ("_run ",),
    "objects: repr": ("Patient(", "ssn=•••", "Array(•••)"),
    "keys: repr": ("KeySet(", "Keyring(", "Key(•••)", "Keys(•••)"),
    "keys: pickle": ("cannot be pickled",),
    "compiled statements: text": ("pgcrypto.pgp_sym_encrypt(",),
    "engines' caches of statements": ("UPDATE patient_data",),
}
"""What the product's work must have left in a place, so that it is known to have been there; of others, nothing is expected."""


class Verdict:
    """What the trial left, each place read once.

    Args:
        trial: The trial.
        known: The product's secrets.
        leaked: The secret that each leak let go.
    """

    def __init__(self, trial: Trial, known: Secrets, leaked: dict[Surface, str]) -> None:
        self.trial = trial
        self.leaked = leaked
        self._scanner = Scanner({**known.known, **{each: each for each in leaked.values()}})
        self._found: dict[str, tuple[dict[str, str], set[str]]] = {}

    def found(self, place: str) -> tuple[dict[str, str], set[str]]:
        """Return the secrets, the product's and those of leaks, that are in a place, each with what is around it; and traces."""
        if place not in self._found:
            hits, traces = self._found[place] = {}, set()
            for data in collected(self.trial, place):
                hits.update(self._scanner.hits(data))
                traces.update(each for each in TRACES.get(place, ()) if each.encode() in data)
        return self._found[place]


@pytest.fixture(scope="module")
def verdict(vault: VaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verdict]:
    """The product's work, and after it every leak with a secret of its own."""
    path, known, printed = f"secrecy/{secrets.token_hex(6)}", Secrets(), Printed()

    def new_provider(below: str) -> VaultKeyProvider:
        return VaultKeyProvider(vault.address, TokenLogin(vault.root_token), mount="secret", path=path + below)

    environment = {
        "VAULT_ADDR": vault.address,
        "VAULT_TOKEN": vault.root_token,
        "VOICEASSIST_DB_VAULT_PATH": f"secret/{path}",
    }
    with talkative_server() as server:
        product = Product(server, new_provider, environment, tmp_path_factory.mktemp("secrecy"), printed, known)
        trial = Trial(server, product, printed, vault.address)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("always")
            patch.setattr(warnings, "showwarning", lambda message, *_: printed.keep("warnings", message))
            patch.setattr(logging.root, "handlers", [printed])
            level = logging.root.level
            logging.root.setLevel(logging.DEBUG)
            try:
                leaked = work(product, trial)
            finally:
                logging.root.setLevel(level)
        server.settle()
        yield Verdict(trial, known, leaked)


def work(product: Product, trial: Trial) -> dict[Surface, str]:
    """Let the product do all that it can, then let secrets leak; return which of them by which way."""
    product.install()
    product.import_file()
    product.use()
    fail_in_every_way(product)
    product.rotate()
    product.show()
    with trial.server.naive() as connection:
        for each in PREPARATIONS:
            connection.execute(each.encode())
    possible = [each for each in SURFACES if each.lacks(trial.server) is None]
    leaked = {each: f"leaked-{secrets.token_hex(12)}" for each in possible}
    for surface, secret in leaked.items():
        surface.leak(trial, secret)
    return leaked


@pytest.mark.parametrize(("surface", "place"), CASES, ids=[f"{place}: {surface.way}" for surface, place in CASES])
def test_nothing_leaks_into(verdict: Verdict, surface: Surface, place: str) -> None:
    """The product's secrets are not there, whereas the one that was let go this way is."""
    if (missing := surface.lacks(verdict.trial.server)) is not None:
        pytest.skip(missing)
    (hits, _), leaks = verdict.found(place), set(verdict.leaked.values())
    assert [each for each in hits if each.startswith(verdict.leaked[surface])], "the leak did not get there"
    found = [f"{name}: {around}" for name, around in hits.items() if name.partition(",")[0] not in leaks]
    assert found[:5] == [], f"{len(found)} secrets are here"


@pytest.mark.parametrize("place", TRACES)
def test_the_product_was_in(verdict: Verdict, place: str) -> None:
    """A place is not clean for want of anything: the product's work has left its traces there."""
    if (missing := next(each for each in SURFACES if place in each.places).lacks(verdict.trial.server)) is not None:
        pytest.skip(missing)
    assert verdict.found(place)[1] == set(TRACES[place])


def test_no_plan_stores_what_is_in_the_clear(verdict: Verdict) -> None:
    """Whichever way the server plans the product's statements: what it may write to its disk is encrypted."""
    server = verdict.trial.server
    statements = encrypting_statements(server, "voiceassist_")
    assert {each.split()[0] for each in statements} >= {"SELECT", "INSERT", "UPDATE"}
    for statement in statements:
        assert stored_in_the_clear(server, statement) == set(), statement
    for naive in (
        "SELECT pgcrypto.pgp_sym_decrypt(v::bytea, $1) FROM naive_rows ORDER BY v",
        "SELECT pgcrypto.pgp_sym_decrypt(v::bytea, $1), count(*) FROM naive_rows GROUP BY 1",
        "SELECT id, max(v) FROM (SELECT id, pgcrypto.pgp_sym_decrypt(v::bytea, $1) v FROM naive_rows OFFSET 0) opened GROUP BY 1",
        "INSERT INTO naive_rows SELECT 9, pgcrypto.pgp_sym_encrypt(given.v, $1)::text FROM unnest($2::text[]) given(v)",
    ):
        assert stored_in_the_clear(server, naive)
