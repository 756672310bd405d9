"""A PostgreSQL server that says all that it can to whoever does not forbid it, and what listens to it."""

from __future__ import annotations

import secrets
import select
import socket
import socketserver
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import URL, create_engine

from tests.conftest import FAST, in_memory, plain
from tests.tls import certified
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.embedded.accounts import server_account
from voiceassist_db.embedded.binaries import find_postgres
from voiceassist_db.embedded.process import HOST, poll
from voiceassist_db.provisioning import Roles, provision

DATABASE: Final = "secrecy"
SLOT: Final = "secrecy"
ROLES: Final = Roles()
LOGS: Final = {"stderr log": "server.log", "csv log": "server.csv", "json log": "server.json"}

SPILLING: Final = {"work_mem": "64kB"}
"""So little that sorts and bulk inserts of a test go to temporary files where they would with much more in production."""

_TALKATIVE: Final = {
    **FAST,
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_duration": "on",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_min_messages": "debug1",
    "log_min_error_statement": "debug5",
    "log_error_verbosity": "verbose",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_replication_commands": "on",
    "log_lock_waits": "on",
    "deadlock_timeout": "100ms",
    "log_temp_files": "0",
    "debug_print_parse": "on",
    "debug_print_rewritten": "on",
    "debug_print_plan": "on",
    "debug_pretty_print": "off",
    "log_destination": "stderr,csvlog,jsonlog",
    "logging_collector": "on",
    "log_filename": "server.log",
    "log_rotation_age": "0",
    "log_rotation_size": "0",
    "plan_cache_mode": "auto",
    "wal_level": "logical",
    "wal_keep_size": "4GB",
    "track_activity_query_size": "1MB",
    "update_process_title": "on",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_verbose": "on",
    "auto_explain.log_settings": "on",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
    "pg_stat_statements.track": "all",
    "pg_stat_statements.track_utility": "on",
}
_TALKATIVE_AUDIT: Final = {"pgaudit.log": "all", "pgaudit.log_parameter": "on"}

_QUIET: Final[tuple[str, ...]] = (
    "log_statement=none",
    "log_min_duration_statement=-1",
    "log_duration=off",
    "log_parameter_max_length=0",
    "log_parameter_max_length_on_error=0",
    "log_min_messages=error",
    "log_min_error_statement=panic",
    "log_error_verbosity=default",
    "log_lock_waits=off",
    "log_temp_files=-1",
    "debug_print_parse=off",
    "debug_print_rewritten=off",
    "debug_print_plan=off",
    "auto_explain.log_min_duration=-1",
    "pg_stat_statements.track=none",
    "plan_cache_mode=auto",
)


class Server:
    """The server, its database, and the ways to it.

    Attributes:
        postgres: The server.
        data: Its data directory.
        binaries: Where its programs are.
        modules: Where the modules that it could load are.
        tap: A proxy before it, which keeps what passes through.
        watch: What looks at its processes, again and again.
    """

    def __init__(self, postgres: EmbeddedPostgres, authority: Path, binaries: Path, modules: Path) -> None:
        self.postgres = postgres
        self.data = postgres.log.parent / "postgres-data"
        self.binaries = binaries
        self.modules = modules
        self.tap = Tap(postgres.port)
        self._authority = authority
        self._passwords = {role: secrets.token_hex(16) for role in ROLES.names()}
        self._quiet: tuple[str, ...] = _QUIET
        if (version := self._set_up()) >= 16:
            self._quiet += ("auto_explain.log_parameter_max_length=0",)
        if self.has("pgaudit"):
            self._quiet += ("pgaudit.log=none",)
        self.version = version
        self.watch = Watch(self)

    def _set_up(self) -> int:
        """Make the database and its roles; return the server's version."""
        with psycopg.connect(plain(self.postgres.url()), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {DATABASE}".encode())
            version = admin.info.server_version // 10000
        self.provision()
        with self.naive() as admin:
            for role, password in self._passwords.items():
                admin.execute(f"ALTER ROLE {role} PASSWORD '{password}'".encode())
                for name, value in SPILLING.items():
                    admin.execute(f"ALTER ROLE {role} SET {name} = '{value}'".encode())
            admin.execute("CREATE EXTENSION pg_stat_statements")
            if self.has("test_decoding"):
                admin.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [SLOT])
        return version

    def provision(self) -> None:
        """Give the roles what they need, on the tables that there are."""
        engine = create_engine(self.postgres.url(DATABASE))
        with engine.begin() as connection:
            provision(connection, ROLES)
        engine.dispose()

    def has(self, module: str) -> bool:
        """Say whether the server could load a module."""
        return (self.modules / f"{module}.so").exists()

    def url(self, role: str) -> URL:
        """Return the address of the database for one of the roles: by TLS, through the tap."""
        query = {"sslmode": "verify-full", "sslrootcert": str(self._authority)}
        return URL.create("postgresql+psycopg", role, self._passwords[role], HOST, self.tap.port, DATABASE, query)

    @contextmanager
    def naive(self, *settings: str) -> Iterator[psycopg.Connection[Any]]:
        """Connect as a superuser whom nothing protects, and for whom the server says nothing but what these settings let it say."""
        options = " ".join(f"-c {each}" for each in (*self._quiet, *settings))
        with psycopg.connect(plain(self.postgres.url(DATABASE)), autocommit=True, options=options) as connection:
            yield connection

    def asked(self, query: str) -> bytes:
        """Return the rows of a query, one on each line, as the superuser sees them."""
        with self.naive() as connection:
            return "\n".join(str(row[0]) for row in connection.execute(query.encode())).encode()

    @contextmanager
    def damaged(self, patient_id: str, damage: str) -> Iterator[None]:
        """Change a patient's row past the product, and restore it afterwards."""
        columns = "ssn_encrypted, key_version"
        with self.naive() as connection:
            before = connection.execute(
                f"SELECT {columns} FROM patient_data WHERE patient_id = '{patient_id}'".encode()
            )
            update = f"UPDATE patient_data SET {{}} WHERE patient_id = '{patient_id}'"
            row = before.fetchone()
            connection.execute(update.format(damage).encode())
            yield
            connection.execute(update.format(f"({columns}) = (%s, %s)").encode(), row)

    def settle(self) -> None:
        """Look no more at what passes, and wait until all is written: tables, statistics, logs."""
        self.watch.close()
        with self.naive() as connection:
            connection.execute("ANALYZE")
            connection.execute("CHECKPOINT")
        end = secrets.token_hex(16)
        with self.naive("log_statement=all") as connection:
            connection.execute(f"SELECT '{end}'".encode())
        for _ in poll(60):
            if all(end in _tail(self.data / "log" / file) for file in LOGS.values()):
                return
            threading.Event().wait(0.05)
        raise AssertionError("the server's logs are not written")


def _tail(file: Path) -> str:
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - 65536))
        return log.read().decode(errors="replace")


class Tap(socketserver.ThreadingTCPServer):
    """A TCP proxy on loopback.

    Attributes:
        port: Where it listens.
        streams: What passed through it, by connection and direction.
    """

    daemon_threads = True

    def __init__(self, server_port: int) -> None:
        super().__init__((HOST, 0), _Relay)
        self.server_port = server_port
        self.port: int = self.socket.getsockname()[1]
        self.streams: list[bytearray] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()


class _Relay(socketserver.BaseRequestHandler):
    server: Tap

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection((HOST, self.server.server_port)) as upstream:
            other = {self.request: upstream, upstream: self.request}
            streams = {each: bytearray() for each in other}
            for each in other:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.server.streams.extend(streams.values())
            while True:
                for each in select.select(list(other), [], [])[0]:
                    if not (data := each.recv(1 << 16)):
                        return
                    streams[each] += data
                    other[each].sendall(data)


class Watch:
    """Looks every few milliseconds at what is there for a moment only; :meth:`look` is one more look, at a chosen moment.

    Attributes:
        seen: What was seen, by place.
    """

    EVERY_S = 0.05

    def __init__(self, server: Server) -> None:
        self.seen: defaultdict[str, set[bytes]] = defaultdict(set)
        self._server = server
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._look_until_over, daemon=True)
        self._stack = ExitStack()
        self._connection = self._stack.enter_context(server.naive())
        self._thread.start()

    def close(self) -> None:
        """Look no more; fails where looking did. A second call does nothing."""
        self._over.set()
        self._thread.join()
        self._stack.close()
        if self._failure is not None:
            raise self._failure

    def _look_until_over(self) -> None:
        try:
            while not self._over.wait(self.EVERY_S):
                self.look()
        except BaseException as error:  # noqa: BLE001  # raised by close()
            self._failure = error

    def look(self) -> None:
        """Keep what the server and its processes show at this moment."""
        with self._lock:
            queries = self._connection.execute("SELECT query FROM pg_stat_activity WHERE query <> ''")
            self.seen["pg_stat_activity"].update(row[0].encode() for row in queries)
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    command = (process / "cmdline").read_bytes()
                    place = "process titles" if command.startswith(b"postgres: ") else "arguments of processes"
                    self.seen[place].add(command)
                    self.seen["environments of processes"].add((process / "environ").read_bytes())
            for file in (self._server.data / "base" / "pgsql_tmp").rglob("*"):
                with suppress(OSError):
                    self.seen["temporary files"].add(file.read_bytes())


@contextmanager
def talkative_server() -> Iterator[Server]:
    """Run it."""
    account = server_account()
    with in_memory(), ExitStack() as stack:
        tls = stack.enter_context(certified("secrecy", HOST))
        binaries = find_postgres(account).directory
        found = subprocess.run([binaries / "pg_config", "--pkglibdir"], check=True, capture_output=True, text=True)
        modules = Path(found.stdout.strip())
        settings = _TALKATIVE | tls.settings
        loaded = ["auto_explain", "pg_stat_statements"]
        if (modules / "pgaudit.so").exists():
            loaded.append("pgaudit")
            settings |= _TALKATIVE_AUDIT
        settings["shared_preload_libraries"] = ",".join(loaded)
        postgres = stack.enter_context(EmbeddedPostgres(settings=settings))
        server = Server(postgres, tls.authority, binaries, modules)
        stack.callback(server.tap.close)
        stack.callback(server.watch.close)
        yield server
