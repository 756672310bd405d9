"""Which databases a command is for: ``--database``, ``--databases`` or ``DATABASE_URL``, and the name of each in a report.

Owns the form of a list of databases, and that no password of one is shown. Opens no connection.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from voiceassist_db.errors import ConfigurationError
from voiceassist_db.tracebacks import forgetful

if TYPE_CHECKING:
    from sqlalchemy import URL

DEFAULT_PORT: Final = "5432"
DEFAULT_HOST: Final = "the default host"
"""Libpq's: this machine's socket, or what PGHOST names."""

_BARE: Final = re.compile(r"[^\s:/@=?#%&]+")
"""The name of a database that cannot be a part of an address, or of a login, that was written wrongly."""

_FORM: Final = "neither the name of a database nor an address like postgresql://USER@HOST/DATABASE"
_PASSWORDS: Final = frozenset({"password", "sslpassword"})
"""Parameters of libpq that hold one."""

_BY_OTHERS: Final = 0o077
"""Permissions of the group and of everybody, as libpq refuses them for PGPASSFILE."""


@dataclass(frozen=True, slots=True)
class Target:
    """A database that a command is for.

    Attributes:
        url: Its address, which may hold a password.
        name: What a report calls it, without a login; empty where the command is for the database of DATABASE_URL alone.
        has_own_address: Whether it was named by an address, and not by DATABASE_URL.
    """

    url: URL = field(repr=False)
    name: str = ""
    has_own_address: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Databases:
    """What the options say. An address in them may hold a password, so it is never shown.

    Attributes:
        named: The values of ``--database``.
        file: The value of ``--databases``.
    """

    named: Sequence[str] = ()
    file: str | None = None

    @forgetful
    def targets(self) -> list[Target]:
        """Return the databases, in the order in which they are named.

        Raises:
            click.UsageError: One cannot be read, or is named twice.
            ConfigurationError: DATABASE_URL is needed, and is not set.
        """
        from voiceassist_db import config

        if not self.named and self.file is None:
            return [Target(config.database_url())]
        entries = [*_of_arguments(self.named), *(_of_file(self.file) if self.file is not None else ())]
        if not entries:
            raise click.UsageError(f"{self.file} names no database")
        found: dict[str, Target] = {}
        for entry in entries:
            target = entry.target()
            if target.name in found:
                raise click.UsageError(f"{entry.where} names {target.name} for the second time")
            found[target.name] = target
        return list(found.values())


def databases_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add ``--database`` and ``--databases`` to a command, which gets them as ``databases``."""

    @click.option(
        "--database",
        "named",
        multiple=True,
        metavar="NAME|ADDRESS",
        help="This database, and not that of DATABASE_URL: its name there, or an address such as postgresql://USER@HOST/DATABASE, "
        "without a password. Repeat it for several databases on one secret.",
    )
    @click.option(
        "--databases",
        "file",
        metavar="FILE",
        help="The databases that FILE names in the same way, one a line. Lines that begin with # are skipped. Addresses may hold "
        "passwords if FILE can be read by its owner only.",
    )
    @functools.wraps(function)
    def command(*, named: tuple[str, ...], file: str | None, **options: Any) -> None:
        function(databases=Databases(named, file), **options)

    return command


@dataclass(frozen=True, slots=True, repr=False)
class _Entry:
    """One value, and where it stands.

    Attributes:
        text: The value.
        where: Where it stands, in words.
        forbids_password: Why it may hold no password; empty where it may.
    """

    text: str
    where: str
    forbids_password: str = ""

    def target(self) -> Target:
        """Parse it."""
        if self.text.count("@") > 1:  # the end of a password would count as the host, and be shown in the report
            raise click.UsageError(f"{self.where} has more than one @: write %40 for an @ of a password or of a name")
        url = self._url()
        parameters = _parameters(url) if url is not None else None
        if url is None or parameters is None:
            raise click.UsageError(f"{self.where} is {_FORM}")
        if self._is_bare():
            return Target(url, _name(parameters))
        if not parameters.get("dbname"):
            raise click.UsageError(f"{self.where} names no database: end the address with /DATABASE")
        if self.forbids_password and any(parameters.get(each) for each in _PASSWORDS):
            raise click.UsageError(self.forbids_password)
        return Target(url, _name(parameters), has_own_address=True)

    def _is_bare(self) -> bool:
        return bool(_BARE.fullmatch(self.text))

    def _url(self) -> URL | None:
        from voiceassist_db import config

        if self._is_bare():
            return config.database_url().difference_update_query(["dbname"]).set(database=self.text)
        try:
            return config.parse_database_url(self.text)
        except ConfigurationError:
            return None


def _of_arguments(named: Sequence[str]) -> Iterator[_Entry]:
    for number, text in enumerate(named, 1):
        where = "the value of --database" if len(named) == 1 else f"value {number} of --database"
        yield _Entry(
            text,
            where,
            forbids_password=f"{where} holds a password, which every user of this machine can see. Change that password. Put the new "
            "one into the file that PGPASSFILE names, or the address into a FILE for --databases",
        )


def _of_file(name: str) -> Iterator[_Entry]:
    text, permissions = _read(name)
    is_open = permissions & _BY_OTHERS
    forbids = (
        f"{name} holds a password, and other users have permissions for it: run `chmod 600 {shlex.quote(name)}`"
        if is_open
        else ""
    )
    for number, line in enumerate(text.split("\n"), 1):
        if (value := line.strip()) and not value.startswith("#"):
            yield _Entry(value, f"line {number} of {name}", forbids_password=forbids)


def _read(name: str) -> tuple[str, int]:
    """Return the text of a file and its permissions, which are those of the very file that was read."""
    problem = ""
    content = b""
    permissions = 0
    try:
        with Path(name).open("rb") as file:
            permissions = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as error:
        problem = error.strerror or type(error).__name__
    if problem:
        raise click.UsageError(f"{name} cannot be read: {problem}")
    text, line = "", 0
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    if line:  # raised here, where no context holds the file's content
        raise click.UsageError(f"line {line} of {name} is not UTF-8")
    return text, permissions


def _parameters(url: URL) -> Mapping[str, Any] | None:
    """Return what libpq is told, from all parts of an address; None where it contradicts itself."""
    from sqlalchemy.exc import ArgumentError

    try:
        _, parameters = url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError):
        return None
    return parameters


def _name(parameters: Mapping[str, Any]) -> str:
    """Return a name that is the same for all spellings of an address, whatever its login."""
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "").split(",")
    ports = str(parameters.get("port") or "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    servers = ",".join(f"{_host(host)}:{port or DEFAULT_PORT}" for host, port in zip(hosts, ports, strict=False))
    return f"{parameters['dbname']} on {servers}"


def _host(host: str) -> str:
    if host.startswith(("/", "@")):  # the directory of a socket, whose case counts
        return host
    if not host:
        return DEFAULT_HOST
    return f"[{host.lower()}]" if ":" in host else host.lower()
