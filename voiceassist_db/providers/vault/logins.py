"""The three ways to log in to Vault. Sends nothing.

A traceback with local variables, as crash reporters take it, shows what a frame holds. So nothing in this package keeps a token,
a password or a raw secret in a variable without a wrapper that masks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voiceassist_db.masking import Opaque

SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where Kubernetes mounts a pod's token (Kubernetes documentation, "Accessing the Kubernetes API from a Pod")."""


class TokenLogin(Opaque):
    """A token that somebody else made, and that is renewed while it can be.

    Attributes:
        token: The token; surrounding white space, as a file leaves it, is not part of it.
    """

    __slots__ = ("token",)

    def __init__(self, token: str) -> None:
        self.token = token.strip()


class AppRoleLogin(Opaque):
    """An AppRole. Its secret id must be good for many logins: there is one whenever the token is about to expire.

    Attributes:
        role_id: The role's id.
        secret_id: The secret that belongs to it.
        mount: Where the auth method is mounted, without ``auth/``.
    """

    __slots__ = ("mount", "role_id", "secret_id")

    def __init__(self, role_id: str, secret_id: str, mount: str = "approle") -> None:
        self.role_id = role_id
        self.secret_id = secret_id
        self.mount = mount

    def __repr__(self) -> str:
        return f"AppRoleLogin(•••, mount={self.mount!r})"


@dataclass(frozen=True, slots=True)
class KubernetesLogin:
    """A pod's service account.

    Attributes:
        role: The role in Vault, which names the service accounts that it admits.
        jwt_file: The service account's token; read again at every login, as Kubernetes replaces it.
        mount: Where the auth method is mounted, without ``auth/``.
    """

    role: str
    jwt_file: Path = SERVICE_ACCOUNT_TOKEN
    mount: str = "kubernetes"
