"""The account that PostgreSQL runs as where this process is root, and what that account can reach.

PostgreSQL refuses to run as root. Reads the user database and file modes and changes neither; access lists are not
looked at.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from voiceassist_db.errors import EmbeddedServerError

_NAMES = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """A user that a server runs as."""

    name: str
    uid: int
    gid: int


def server_account(data: Path | None = None) -> Account | None:
    """Return whom to run PostgreSQL as, or None where this process is not root and runs it as itself.

    Args:
        data: A data directory; where it exists already its owner is taken, because PostgreSQL accepts nobody else.

    Raises:
        EmbeddedServerError: This process is root, and the machine has neither ``postgres`` nor ``nobody``.
    """
    if os.geteuid() != 0:
        return None
    import pwd  # absent on Windows, where this module must still be importable

    if data is not None and data.exists() and data.stat().st_uid != 0:
        owner = data.stat()
        try:
            name = pwd.getpwuid(owner.st_uid).pw_name
        except KeyError:
            name = str(owner.st_uid)
        return Account(name, owner.st_uid, owner.st_gid)
    for name in _NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedServerError(
        f"PostgreSQL refuses to run as root, and no user {' or '.join(_NAMES)} exists: create one"
    )


def blocked_at(directory: Path, account: Account) -> Path | None:
    """Return the outermost of ``directory`` and its ancestors that ``account`` cannot enter; None: it enters all."""
    resolved = directory.resolve()
    for path in (*reversed(resolved.parents), resolved):
        if not permits(path, account, stat.S_IXOTH):
            return path
    return None


def permits(path: Path, account: Account, wanted: int) -> bool:
    """Tell whether the mode of ``path`` gives ``account`` the rights ``wanted``, in the bits for others (S_IXOTH …)."""
    status = path.stat()
    if status.st_uid == account.uid:
        granted = status.st_mode >> 6
    elif status.st_gid == account.gid:
        granted = status.st_mode >> 3
    else:
        granted = status.st_mode
    return granted & wanted == wanted
