"""The ways to log in to Vault. Sends nothing.

A traceback with local variables, as crash reporters take it, shows what a frame holds. So nothing in this package keeps a token,
a password or a raw secret in a variable without a wrapper that masks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from voiceassist_db.errors import KeyStoreAuthenticationError
from voiceassist_db.masking import Masked, Opaque
from voiceassist_db.providers.vault.answers import RawSecret

SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where Kubernetes mounts a pod's token (Kubernetes documentation, "Accessing the Kubernetes API from a Pod")."""


class TokenLogin(Opaque):
    """A token that somebody else made, and that is renewed while it can be.

    Attributes:
        token: The token; surrounding white space, as a file leaves it, is not part of it.
    """

    __slots__ = ("token",)
    advice: Final = "Set VAULT_TOKEN to a new one."

    def __init__(self, token: str) -> None:
        self.token = token.strip()

    def read(self) -> Masked:
        """Return the token."""
        return Masked(self.token)


@dataclass(frozen=True, slots=True)
class TokenFileLogin:
    """A token in a file: of ``vault login``, of a mounted secret, or of Vault Agent's sink, which replaces it.

    Attributes:
        file: The file; read again before every request, as its writer replaces the token.
    """

    file: Path

    @property
    def advice(self) -> str:
        """What to do where the token is not accepted."""
        return f"Write a new one to {self.file} (VAULT_TOKEN_FILE), or start the Vault Agent that writes it."

    def read(self) -> Masked:
        """Return the token that the file holds now.

        Raises:
            KeyStoreAuthenticationError: The file cannot be read, is empty, or holds no plain token.
        """
        token = _content(self.file)
        if token is None or not token.value:
            what = "cannot be read" if token is None else "is empty"
            raise KeyStoreAuthenticationError(
                f"the file of the Vault token {self.file} {what}: correct VAULT_TOKEN_FILE, or start what writes the file"
            )
        if token.value.startswith("{"):
            raise KeyStoreAuthenticationError(
                f"the file of the Vault token {self.file} holds a wrapped or encrypted token: remove wrap_ttl and dh_type "
                "from the sink of Vault Agent, and restrict the file's mode instead"
            )
        return token


@dataclass(frozen=True, slots=True)
class AgentLogin:
    """No login: the address is that of a Vault Agent or Vault Proxy, which adds its own token to every request."""

    @property
    def advice(self) -> str:
        """What to do where a request without a token is refused."""
        return (
            "No token was sent, so the agent at VAULT_AGENT_ADDR must add its own: configure auto_auth and "
            "`use_auto_auth_token = true` there, and read its log."
        )

    def read(self) -> Masked:
        """Return no token."""
        return Masked("")


class AppRoleLogin(Opaque):
    """An AppRole. Its secret id must be good for many logins: there is one whenever the token is about to expire.

    Attributes:
        role_id: The role's id.
        secret_id: The secret that belongs to it.
        mount: Where the auth method is mounted, without ``auth/``.
    """

    __slots__ = ("mount", "role_id", "secret_id")
    advice: Final = "VAULT_ROLE_ID and VAULT_SECRET_ID (is the secret id expired or used up?)"

    def __init__(self, role_id: str, secret_id: str, mount: str = "approle") -> None:
        self.role_id = role_id
        self.secret_id = secret_id
        self.mount = mount

    def __repr__(self) -> str:
        return f"AppRoleLogin(•••, mount={self.mount!r})"

    def proof(self) -> RawSecret:
        """Return what the login sends."""
        return RawSecret({"role_id": self.role_id, "secret_id": self.secret_id})


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

    @property
    def advice(self) -> str:
        """What to check where the login is refused."""
        return f"VAULT_KUBERNETES_ROLE ({self.role}), and that it admits this pod's service account and namespace"

    def proof(self) -> RawSecret:
        """Return what the login sends. Raises KeyStoreAuthenticationError where the token cannot be read."""
        jwt = _content(self.jwt_file)
        if jwt is None:
            raise KeyStoreAuthenticationError(
                f"the service account's token {self.jwt_file} cannot be read: is this a pod, and is its token mounted "
                "(automountServiceAccountToken)?"
            )
        return RawSecret({"role": self.role, "jwt": jwt.value})


@dataclass(frozen=True, slots=True)
class JwtLogin:
    """A JSON Web Token that an identity provider signed: of a CI job, of a cloud workload, or of an OIDC provider.

    Attributes:
        role: The role in Vault, which names the claims that it admits.
        jwt_file: The token; read again at every login, as its writer replaces it.
        mount: Where the auth method is mounted, without ``auth/``.
    """

    role: str
    jwt_file: Path
    mount: str = "jwt"

    @property
    def advice(self) -> str:
        """What to check where the login is refused."""
        return f"VAULT_JWT_ROLE ({self.role}), and that {self.jwt_file} is not expired and has the role's audience and claims"

    def proof(self) -> RawSecret:
        """Return what the login sends. Raises KeyStoreAuthenticationError where the token cannot be read."""
        jwt = _content(self.jwt_file)
        if jwt is None:
            raise KeyStoreAuthenticationError(
                f"the JWT {self.jwt_file} cannot be read: correct VAULT_JWT_FILE, or start what writes the file"
            )
        return RawSecret({"role": self.role, "jwt": jwt.value})


@dataclass(frozen=True, slots=True)
class CertificateLogin:
    """The client certificate of the TLS connection itself.

    Attributes:
        mount: Where the auth method is mounted, without ``auth/``.
    """

    mount: str = "cert"

    @property
    def advice(self) -> str:
        """What to check where the login is refused."""
        return "that a role of the method admits the certificate VAULT_CLIENT_CERT, and that VAULT_ADDR is https"

    def proof(self) -> RawSecret:
        """Return nothing: the connection has the certificate."""
        return RawSecret()


GivenLogin: TypeAlias = TokenLogin | TokenFileLogin | AgentLogin
"""A token that exists already: it cannot be replaced here, only renewed."""

MethodLogin: TypeAlias = AppRoleLogin | KubernetesLogin | JwtLogin | CertificateLogin
"""An auth method of Vault, which makes a token at each login."""

Login: TypeAlias = GivenLogin | MethodLogin


def _content(file: Path) -> Masked | None:
    """Return a file's text without white space around it; None where it cannot be read or is not ASCII."""
    try:
        return Masked(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None  # callers raise unchained: a decoding error holds the text
