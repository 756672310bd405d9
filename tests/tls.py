"""TLS for a PostgreSQL server of a test's own, with a certificate authority that nobody else knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from voiceassist_db.embedded.accounts import server_account
from voiceassist_db.embedded.process import GuardedProcess, temporary_home, write_private


@dataclass(frozen=True)
class Certified:
    """A certificate for a server.

    Attributes:
        settings: The server's settings.
        authority: The certificate of the authority, for clients.
    """

    settings: dict[str, str]
    authority: Path


@contextmanager
def certified(name: str, *hosts: str) -> Iterator[Certified]:
    """Make a certificate for a server with these names and addresses, in a directory that goes with the process.

    Args:
        name: What the directory is called.
        hosts: Names and addresses.
    """
    account = server_account()
    home = GuardedProcess()
    try:
        directory = temporary_home(name, account)
        home.claim(temporary=directory)
        if account is not None:
            os.chown(directory, account.uid, account.gid)
        authority, certificate = trustme.CA(), directory / "server.pem"
        authority.cert_pem.write_to_path(directory / "authority.pem")
        pem = authority.issue_cert(*hosts).private_key_and_cert_chain_pem.bytes().decode()
        write_private(certificate, pem, account=account)
        settings = {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(certificate)}
        yield Certified(settings, directory / "authority.pem")
    finally:
        home.close()
