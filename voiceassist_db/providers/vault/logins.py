"""The three ways to log in to Vault, and the wrappers that keep a secret out of every repr.

A traceback with local variables, as crash reporters take it, shows the reprs of what a frame holds: so nothing in this
package keeps a token, a password or a raw secret in a variable without one of these wrappers. Sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where Kubernetes mounts a pod's token (Kubernetes documentation, "Accessing the Kubernetes API from a Pod")."""


@dataclass(frozen=True, slots=True, repr=False)
class Masked:
    """A string that shows itself only by its attribute."""

    value: str

    def __repr__(self) -> str:
        return "•••"


class RawSecret(dict[str, Any]):
    """Fields as Vault stores or returns them, whose repr shows nothing."""

    def __repr__(self) -> str:
        return "RawSecret(•••)"


@dataclass(frozen=True, slots=True, repr=False)
class TokenLogin:
    """A token that somebody else made, and that is renewed while it can be.

    Attributes:
        token: The token; surrounding white space, as a file leaves it, is not part of it.
    """

    token: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", self.token.strip())

    def __repr__(self) -> str:
        return "TokenLogin(•••)"


@dataclass(frozen=True, slots=True, repr=False)
class AppRoleLogin:
    """An AppRole. Its secret id must be good for many logins: there is one whenever the token is about to expire.

    Attributes:
        role_id: The role's id.
        secret_id: The secret that belongs to it.
        mount: Where the auth method is mounted, without ``auth/``.
    """

    role_id: str
    secret_id: str
    mount: str = "approle"

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
