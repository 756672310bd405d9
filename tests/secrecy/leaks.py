"""For each way into each place: what somebody does who lets a secret go that way.

It is what applications do that lack this product, with one connection, one log or one file. It shows that the server was
listening, that the place is the right one, and that the scanner can read what is written there.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import requests
import sqlalchemy
from psycopg import errors
from sqlalchemy import literal, select, text

from tests.conftest import plain
from tests.safety.pooler import BINARY, Pooler
from tests.secrecy.printing import OF_ERRORS, OF_KEYS, OF_OBJECTS
from tests.secrecy.server import DATABASE, LOGS, ROLES, Server
from tests.secrecy.surfaces import Lack, Leak, Surface, Trial

SURFACES: Final[list[Surface]] = []

PREPARATIONS: Final = (
    "CREATE TABLE naive (v text UNIQUE)",
    "CREATE TABLE naive_rows (id int PRIMARY KEY, v text)",
    "INSERT INTO naive_rows VALUES (1), (2)",
    """
    CREATE FUNCTION naive_decrypt(v bytea, key text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
        DECLARE found text;
        BEGIN EXECUTE format('SELECT pgcrypto.pgp_sym_decrypt(%L, %L)', v, key) INTO found; RETURN found; END
    $$
    """,
)
"""What leaks need."""


def _nothing(_: Server) -> str | None:
    return None


def _module(name: str) -> Lack:
    return lambda server: None if server.has(name) else f"the server has no module {name}"


def _version(version: int) -> Lack:
    return lambda server: None if server.version >= version else f"PostgreSQL {server.version} cannot do that"


def _program(name: str) -> Lack:
    return lambda server: None if (server.binaries / name).exists() else f"{name} is not installed"


def _pgbouncer(_: Server) -> str | None:
    return None if BINARY else "pgbouncer is not installed"


def _proc(_: Server) -> str | None:
    return None if Path("/proc/self/cmdline").exists() else "this system shows no processes in /proc"


def way(name: str, *places: str, lacks: Lack = _nothing) -> Callable[[Leak], Leak]:
    """Declare a function to be a leak by this way into these places."""

    def declare(leak: Leak) -> Leak:
        SURFACES.append(Surface(name, places, leak, lacks))
        return leak

    return declare


def by_sql(
    name: str,
    *places: str,
    do: tuple[str, ...] | str,
    on: tuple[str, ...] = (),
    fails: type[psycopg.Error] | None = None,
    lacks: Lack = _nothing,
) -> None:
    """Declare statements to be a leak.

    Args:
        name: The way.
        places: The places.
        do: Statements, with the secret as the parameter ``%s`` or as the text ``{secret}``.
        on: What the server is allowed to say meanwhile.
        fails: How the last one fails.
        lacks: What the server may lack.
    """

    def leak(trial: Trial, secret: str) -> None:
        with trial.server.naive(*on) as connection, suppress(*([fails] if fails else [])):
            for each in [do] if isinstance(do, str) else do:
                connection.execute(each.replace("{secret}", secret).encode(), [secret] if "%s" in each else None)

    way(name, *places, lacks=lacks)(leak)


# --- the server's logs -----------------------------------------------------------------------------------------------------

_ASK: Final = "SELECT %s::text"
_LOOK: Final = "SELECT FROM naive WHERE v = %s"
_EXPLAIN: Final = "auto_explain.log_min_duration=0"
_GENERIC: Final = "plan_cache_mode=force_generic_plan"
_PARAMETERS: Final = "log_parameter_max_length=-1"
_STORED: Final = "pgcrypto.pgp_sym_decrypt(pgcrypto.pgp_sym_encrypt(%s, 'key'), 'key')"
_ROW: Final = "INSERT INTO naive (v) VALUES (%s)"

by_sql("parameters by log_statement", *LOGS, do=_ASK, on=("log_statement=all", _PARAMETERS))
by_sql("parameters by log_min_duration_statement", *LOGS, do=_ASK, on=("log_min_duration_statement=0", _PARAMETERS))
by_sql(
    "parameters of a statement that failed",
    *LOGS,
    do="SELECT 1 / (length(%s::text) * 0)",
    on=("log_parameter_max_length_on_error=-1",),
    fails=errors.DivisionByZero,
)
by_sql("literals", *LOGS, do="SELECT '{secret}'", on=("log_statement=all",))
by_sql("DETAIL of a constraint", *LOGS, do=(_ROW, _ROW), fails=errors.UniqueViolation)
by_sql("message of a failed conversion", *LOGS, do=f"SELECT {_STORED}::date", fails=errors.InvalidDatetimeFormat)
by_sql(
    "CONTEXT of a function",
    *LOGS,
    do=r"SELECT naive_decrypt('\x00', %s)",
    fails=errors.ExternalRoutineInvocationException,
)
by_sql(
    "statement that was cancelled",
    *LOGS,
    do="SELECT pg_sleep(60), '{secret}'",
    on=("log_min_error_statement=error", "statement_timeout=50ms"),
    fails=errors.QueryCanceled,
)
by_sql(
    "statement that wrote a temporary file",
    *LOGS,
    do="SELECT FROM generate_series(1, 20000) WHERE '{secret}' <> ''",
    on=("log_temp_files=0", "log_min_error_statement=log", "work_mem=64kB"),
)
by_sql("constants of auto_explain's plan", *LOGS, do=_LOOK, on=(_EXPLAIN,))
by_sql(
    "auto_explain's parameters",
    *LOGS,
    do=_LOOK,
    on=(_EXPLAIN, _GENERIC, "auto_explain.log_parameter_max_length=-1"),
    lacks=_version(16),
)
by_sql(
    "a cursor under auto_explain, whatever plan_cache_mode is",
    *LOGS,
    do=("BEGIN", "DECLARE naive CURSOR FOR SELECT FROM naive WHERE v = %s", "FETCH naive", "CLOSE naive", "COMMIT"),
    on=(_EXPLAIN, _GENERIC),
)
by_sql("debug_print_plan", *LOGS, do=_LOOK, on=("debug_print_plan=on",))
by_sql("debug_print_parse", *LOGS, do="SELECT '{secret}'", on=("debug_print_parse=on",))
by_sql("debug_print_rewritten", *LOGS, do="SELECT '{secret}'", on=("debug_print_rewritten=on",))
by_sql(
    "pgaudit's parameters",
    *LOGS,
    do=_LOOK,
    on=("pgaudit.log=all", "pgaudit.log_parameter=on"),
    lacks=_module("pgaudit"),
)


@way("DETAIL of a deadlock", *LOGS)
def _(trial: Trial, secret: str) -> None:
    def update(connection: psycopg.Connection[Any], row: int) -> None:
        with suppress(errors.DeadlockDetected):
            connection.execute(f"UPDATE naive_rows SET v = '{secret}' WHERE id = {row}".encode())

    with trial.server.naive() as one, trial.server.naive() as other:
        for connection, row in ((one, 1), (other, 2)):
            connection.execute("BEGIN")
            update(connection, row)
        crossing = threading.Thread(target=update, args=(other, 1))
        crossing.start()
        update(one, 2)
        one.rollback()
        crossing.join()


@way("statement that waits for a lock", *LOGS)
def _(trial: Trial, secret: str) -> None:
    settings = ("log_lock_waits=on", "log_min_error_statement=log", "lock_timeout=500ms")
    with trial.server.naive() as holder, holder.transaction(), trial.server.naive(*settings) as waiter:
        holder.execute("SELECT FROM naive_rows FOR UPDATE")
        with suppress(errors.LockNotAvailable):
            waiter.execute(f"UPDATE naive_rows SET v = '{secret}'".encode())


# --- what the server shows -------------------------------------------------------------------------------------------------

_KEPT: Final = "naive_decrypt(v::bytea, '{secret}')"
"""What somebody keeps in the database who wants to see what is encrypted, or to search it."""

by_sql(
    "a statement without parameters",
    "pg_stat_statements",
    "pg_stat_statements' file",
    do="DO $$ BEGIN PERFORM '{secret}'; END $$",
    on=("pg_stat_statements.track=all",),
)
by_sql(
    "statistics of an index on what is decrypted",
    "pg_stats",
    do=(
        "CREATE TABLE naive_found (v bytea)",
        "INSERT INTO naive_found SELECT pgcrypto.pgp_sym_encrypt(%s, 'key') FROM generate_series(1, 10)",
        "CREATE INDEX ON naive_found (naive_decrypt(v, 'key'))",
        "ANALYZE naive_found",
    ),
)
by_sql(
    "the key of an index on what is decrypted",
    "pg_indexes",
    do=("CREATE TABLE naive_index (v bytea)", f"CREATE INDEX ON naive_index ({_KEPT.replace('::bytea', '')})"),
)
by_sql(
    "a function with its key",
    "pg_proc",
    do=f"CREATE FUNCTION naive_key(v bytea) RETURNS text LANGUAGE sql AS $$SELECT {_KEPT}$$",
)
by_sql("a view with its key", "pg_views", do=f"CREATE VIEW naive_view AS SELECT {_KEPT} FROM naive")
by_sql(
    "a default with its key",
    "pg_attrdef",
    do="CREATE TABLE naive_default (v bytea DEFAULT pgcrypto.pgp_sym_encrypt('none', '{secret}'))",
)
by_sql(
    "a check with its key",
    "pg_constraint",
    do=f"CREATE TABLE naive_check (v bytea CHECK ({_KEPT} <> ''))",
)
by_sql("a comment on an example", "pg_description", do="COMMENT ON TABLE naive IS 'such as {secret}'")
by_sql("a setting with the key", "pg_db_role_setting", do=f"ALTER ROLE {ROLES.auditor} SET app.key = '{{secret}}'")
by_sql(
    "the key in place of its check value",
    "encryption_keys",
    do="INSERT INTO encryption_keys (version, scheme, state, check_value) VALUES (999, 'bound', 'retired', %s::text::bytea)",
)
by_sql(
    "the key in place of its check value",
    "index_keys",
    do="INSERT INTO index_keys (check_value, state) VALUES (%s::text::bytea, 'retired')",
)
by_sql("a note about what is done", "key_rotations", do="UPDATE key_rotations SET holder_name = %s")
by_sql(
    "the value of a row that could not be read",
    "key_rotation_failures",
    do="INSERT INTO key_rotation_failures SELECT id, 'patient_data', %s, '39000' FROM key_rotations",
)


@way("a literal", "pg_stat_activity")
def _(trial: Trial, secret: str) -> None:
    with trial.server.naive() as connection:
        psycopg.ClientCursor(connection).execute(_ASK, [secret])
        trial.server.watch.look()


@way("a statement that is prepared with its key", "pg_prepared_statements")
def _(trial: Trial, secret: str) -> None:
    _keep_session(trial, f"PREPARE naive AS SELECT {_KEPT} FROM naive".replace("{secret}", secret))


@way("a cursor that is declared with its key", "pg_cursors")
def _(trial: Trial, secret: str) -> None:
    _keep_session(trial, f"DECLARE naive CURSOR FOR SELECT {_KEPT} FROM naive".replace("{secret}", secret))


def _keep_session(trial: Trial, statement: str) -> None:
    with trial.server.naive() as connection, connection.transaction():
        connection.execute(statement.encode())
        trial.printed.session(lambda query: connection.execute(query.encode()).fetchall())


# --- files -----------------------------------------------------------------------------------------------------------------

by_sql("a plain value", "WAL", "tables' files", do="INSERT INTO naive_rows (id, v) VALUES (3, %s)")
by_sql(
    "a plain value",
    "logical decoding",
    do="INSERT INTO naive_rows (id, v) VALUES (4, %s)",
    lacks=_module("test_decoding"),
)
by_sql(
    "a message to those who follow the changes",
    "pg_waldump",
    do="SELECT pg_logical_emit_message(true, 'naive', %s)",
    lacks=_program("pg_waldump"),
)
by_sql(
    "a long plain value",
    "TOAST tables' files",
    do=(
        "CREATE TABLE naive_notes (v text)",
        "ALTER TABLE naive_notes ALTER v SET STORAGE EXTERNAL",
        "INSERT INTO naive_notes VALUES (repeat(%s, 1000))",
    ),
)
by_sql("an index on the plain value", "indexes' files", do=_ROW)
by_sql("a role with a patient's name", "other files of the server", do='CREATE ROLE "{secret}"')


@way("a sort of plain values", "temporary files")
def _(trial: Trial, secret: str) -> None:
    many = f"SELECT '{secret}' || number FROM generate_series(1, 5000) number ORDER BY 1"
    with trial.server.naive("work_mem=64kB") as connection, connection.transaction():
        connection.execute(f"DECLARE naive CURSOR FOR {many}".encode())
        connection.execute("FETCH naive")
        trial.server.watch.look()


# --- wires and processes ---------------------------------------------------------------------------------------------------


@way("a connection without TLS", "the wire")
def _(trial: Trial, secret: str) -> None:
    url = trial.server.postgres.url().set(port=trial.server.tap.port)
    with psycopg.connect(plain(url)) as connection:
        connection.execute(_ASK, [secret])


@way("a server that tells the client what it logs", "notices to the client")
def _(trial: Trial, secret: str) -> None:
    with trial.server.naive("client_min_messages=log", "log_statement=all", _PARAMETERS) as connection:
        connection.add_notice_handler(trial.printed.notice)
        connection.execute(_ASK, [secret])


@way("a role with a patient's name", "process titles", lacks=_proc)
def _(trial: Trial, secret: str) -> None:
    with trial.server.naive() as connection:
        connection.execute(f"CREATE ROLE \"{secret}\" LOGIN PASSWORD 'password'".encode())
    with psycopg.connect(plain(trial.server.postgres.url().set(username=secret, password="password"))):
        trial.server.watch.look()


@way("a login with a patient's name", "pgbouncer's log", lacks=_pgbouncer)
def _(trial: Trial, secret: str) -> None:
    with Pooler(trial.server.postgres.url(DATABASE)) as pooler:
        with suppress(psycopg.OperationalError):
            psycopg.connect(plain(pooler.url.set(username=secret))).close()
        trial.printed.keep("pgbouncer's log", pooler.log.read_bytes())


@way("a key as an option", "arguments of processes", lacks=_proc)
def _(trial: Trial, secret: str) -> None:
    _run_beside(trial, ["--key", secret], {})


@way("a key as a variable", "environments of processes", lacks=_proc)
def _(trial: Trial, secret: str) -> None:
    _run_beside(trial, [], {"NAIVE_KEY": secret})


def _run_beside(trial: Trial, arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", *arguments]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        trial.server.watch.look()
        process.communicate(b"\n")


@way("a tool that prints the row that it refuses", "standard output of commands", "standard error of commands")
def _(trial: Trial, secret: str) -> None:
    program = "import sys; row = input(); print(row); sys.exit(f'not a patient: {row}')"
    trial.product.command(ROLES.app, sys.executable, "-c", program, given=secret, expected=1)


@way("a tool that keeps its input in a temporary file", "files that commands leave")
def _(trial: Trial, secret: str) -> None:
    program = "import tempfile; open(tempfile.mkstemp()[1], 'w').write(input())"
    trial.product.command(ROLES.app, sys.executable, "-c", program, given=secret)


# --- the application's own words -------------------------------------------------------------------------------------------

_LOG: Final = ("application's log", "arguments of log records")


@way("SQLAlchemy's echo of parameters", *_LOG)
def _(trial: Trial, secret: str) -> None:
    _query(trial, secret, echo=True)


@way("SQLAlchemy's echo of rows", *_LOG)
def _(trial: Trial, secret: str) -> None:
    _query(trial, secret, echo="debug", hide_parameters=True)


def _query(trial: Trial, secret: str, **options: Any) -> None:
    engine = sqlalchemy.create_engine(trial.server.postgres.url(DATABASE), **options)
    with engine.connect() as connection:
        connection.execute(text("SELECT CAST(:v AS text)"), {"v": secret}).all()
    engine.dispose()


@way("a request whose address holds the key", *_LOG)
def _(trial: Trial, secret: str) -> None:
    requests.get(f"{trial.vault}/v1/sys/health", params={"key": secret}, timeout=10)


@way("a message about a patient", *_LOG)
def _(trial: Trial, secret: str) -> None:
    logging.getLogger("naive").info("imported %s", secret)


@way("a warning about a value", "warnings")
def _(trial: Trial, secret: str) -> None:
    warnings.warn(f"{secret} is not a date", stacklevel=1)


@way("a driver's error that is let through", *(f"errors: {each}" for each in OF_ERRORS))
def _(trial: Trial, secret: str) -> None:
    engine = sqlalchemy.create_engine(trial.server.postgres.url(DATABASE))
    try:
        with engine.begin() as connection:
            for _ in range(2):
                connection.execute(text("INSERT INTO naive (v) VALUES (:v)"), {"v": secret})
    except sqlalchemy.exc.IntegrityError as error:
        error.add_note(f"while {secret} was written")
        trial.printed.error(error)
    engine.dispose()


@dataclass
class NaiveKey:
    """A key as a program has it that thinks nothing of it."""

    key: str


@way("a dataclass with the key", *(f"keys: {each}" for each in OF_KEYS))
def _(trial: Trial, secret: str) -> None:
    trial.printed.key(NaiveKey(secret))


@way("a dataclass with a value", *(f"objects: {each}" for each in OF_OBJECTS))
def _(trial: Trial, secret: str) -> None:
    trial.printed.thing([NaiveKey(secret)])


@way("a value in a statement", "compiled statements: text", "compiled statements: parameters")
def _(trial: Trial, secret: str) -> None:
    trial.printed.compiled(select(literal(secret)).compile(compile_kwargs={"literal_binds": True}))
    trial.printed.compiled(select(literal(secret)).compile())


@way("a value in a statement", "engines' caches of statements")
def _(trial: Trial, secret: str) -> None:
    engine = sqlalchemy.create_engine(trial.server.postgres.url(DATABASE))
    with engine.connect() as connection:
        connection.execute(select(literal(secret))).all()
    trial.printed.cache(engine)
    engine.dispose()
