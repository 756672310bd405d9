"""Addresses of servers: which of them a secret may be sent to in clear.

Owns the form of a key store's address, and how a database's is handed to libpq. Opens no connection and resolves no name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from sqlalchemy import URL

from voiceassist_db.errors import ConfigurationError
from voiceassist_db.masking import Masked

_TEXT: Final = re.compile(r"[!-\[\]-~]+")
"""Visible ASCII but the backslash. Parsers of addresses drop white space and end the host's name, each in its own way."""

_HOST: Final = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
"""A name or an IPv4 address; or an IPv6 address, without a zone."""


def is_this_machine(host: str) -> bool:
    """Say whether a host's name or address can only be this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a key store.

    Attributes:
        url: The URL, which may hold a user name and a password.
        shown: The URL without them.
        host: Name or address of the host.
        is_encrypted: Whether the connection uses TLS.
    """

    url: Masked
    shown: str
    host: str
    is_encrypted: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address as ``VAULT_ADDR`` has it.

        Raises:
            ConfigurationError: It is not ``http://`` or ``https://``, a host, and perhaps a port and a path.
        """
        parts = _split(text)
        if parts is None:
            raise ConfigurationError("the address of Vault (VAULT_ADDR) must look like https://vault.example.org:8200")
        path = parts.path.rstrip("/")
        return cls(
            url=Masked(f"{parts.scheme}://{parts.netloc}{path}"),
            shown=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}",
            host=parts.hostname or "",
            is_encrypted=parts.scheme == "https",
        )

    @property
    def is_in_clear(self) -> bool:
        """Whether other machines could read what is sent to this address."""
        return not self.is_encrypted and not is_this_machine(self.host)


def _split(text: str) -> SplitResult | None:
    if not _TEXT.fullmatch(text):
        return None
    try:
        parts = urlsplit(text)
        is_server = (
            parts.scheme in {"http", "https"} and bool(_HOST.fullmatch(parts.hostname or "")) and parts.port != 0
        )
    except ValueError:
        return None
    return None if not is_server or {"?", "#"} & set(text) else parts


def plain(url: URL) -> str:
    """Return a database's address as psycopg and libpq take it, with its password.

    Args:
        url: The address as SQLAlchemy takes it.
    """
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
