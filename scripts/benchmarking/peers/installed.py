"""All that is compared: in the database, in the application, and by libraries; each with as many rows as it does in some seconds."""

from __future__ import annotations

import importlib.util
from typing import Final

import click

from benchmarking.deployment import Deployment
from benchmarking.peers.batches import PrimaryKeyBatches, SkipLockedBatches
from benchmarking.peers.fernet import FernetInBatches, FernetRowByRow
from benchmarking.peers.peer import Peer
from benchmarking.peers.recipe import Recipe
from benchmarking.ways import Way

MODULES: Final = ("advanced_alchemy", "django", "encrypted_fields", "pgcrypto", "sqlalchemy_utils")
"""What the extra brings."""


def require_extra() -> None:
    """Refuse to go on without the libraries.

    Raises:
        click.ClickException: They are not installed.
    """
    if missing := [name for name in MODULES if importlib.util.find_spec(name) is None]:
        raise click.ClickException(
            f"the libraries to compare with are not installed ({', '.join(missing)}): "
            "pip install -c constraints.txt -e '.[embedded,benchmark]', or leave them out with --only"
        )


def statements(deployment: Deployment, rows: int, workers: int) -> list[Way]:
    """Return the ways that need no library, for a table of as many rows; slow ones get a share.

    Those that can be shared out are there with one connection, and with as many as ours has workers.
    """
    return [
        *(PrimaryKeyBatches(deployment, rows=rows, connections=each) for each in sorted({1, workers})),
        *(SkipLockedBatches(deployment, rows=rows, connections=each) for each in sorted({1, workers})),
        Recipe(deployment, rows=share(rows, 40)),
        FernetRowByRow(deployment, table="fernet_row_by_row", rows=share(rows, 40)),
        FernetInBatches(deployment, table="fernet_in_batches", rows=share(rows, 5)),
    ]


def libraries(deployment: Deployment, rows: int) -> list[Peer]:
    """Return the libraries, for the same; Django is configured for the database."""
    from benchmarking.peers import django_fields as django
    from benchmarking.peers import sqlalchemy_types as types

    django.configure(deployment.url)
    return [
        types.SqlAlchemyPeer(
            deployment,
            distribution="sqlalchemy-utils",
            encrypted=types.sqlalchemy_utils_aes,
            rows=share(rows, 10),
            what="StringEncryptedType, AES",
            note="AES-CBC without authentication, one IV for all values",
            can_find=True,
        ),
        types.SqlAlchemyPeer(
            deployment,
            distribution="advanced-alchemy",
            encrypted=types.advanced_alchemy_fernet,
            rows=share(rows, 10),
            what="EncryptedString, Fernet",
        ),
        types.SqlAlchemyPeer(
            deployment,
            distribution="advanced-alchemy",
            encrypted=types.advanced_alchemy_pgcrypto,
            rows=share(rows, 80),
            what="EncryptedString, pgcrypto",
            note="pgcrypto's default options, which cannot be changed, stretch each key",
        ),
        django.FernetFields(deployment, rows=share(rows, 40)),
        django.PgcryptoFields(deployment, rows=share(rows, 80)),
    ]


def share(rows: int, divisor: int) -> int:
    """Return a share of the rows, but not so few that nothing can be seen."""
    return max(rows // divisor, 100)
