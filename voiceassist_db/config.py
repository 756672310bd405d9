"""Settings from the environment: the only module that reads it.

Owns the names, the defaults and the errors for what is missing or contradictory. Opens no connection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from voiceassist_db.addresses import ServerAddress
from voiceassist_db.errors import ConfigurationError
from voiceassist_db.keys import KeyProvider
from voiceassist_db.tracebacks import forgetful

if TYPE_CHECKING:
    from voiceassist_db.providers.vault.logins import Login

DATABASE_URL: Final = "DATABASE_URL"
ALLOW_UNSAFE: Final = "VOICEASSIST_DB_ALLOW_UNSAFE"
TRUST_LOCAL: Final = "VOICEASSIST_DB_TRUST_LOCAL"
DRIVER: Final = "postgresql+psycopg"
DEFAULT_VAULT_PATH: Final = "secret/voiceassist/encryption"
VAULT_LOGINS: Final = (
    "VAULT_TOKEN, VAULT_TOKEN_FILE, VAULT_ROLE_ID and VAULT_SECRET_ID, VAULT_KUBERNETES_ROLE, VAULT_JWT_ROLE and "
    "VAULT_JWT_FILE, VAULT_AGENT_ADDR, or VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"
)


_PARAMETER: Final = re.compile(r"[a-z_]{1,40}")


@forgetful
def database_url(environment: Mapping[str, str] = os.environ) -> URL:
    """Return the database's address from ``DATABASE_URL``, with psycopg as its driver.

    Raises:
        ConfigurationError: It is not set, or is not the address of a PostgreSQL database.
    """
    value = environment.get(DATABASE_URL, "")
    if not value:
        raise ConfigurationError(
            f"{DATABASE_URL} is not set. Set it to postgresql://USER@HOST/DATABASE, or try everything on servers of its "
            "own with `voiceassist-db dev`."
        )
    return parse_database_url(value)


@forgetful
def parse_database_url(value: str) -> URL:
    """Parse ``postgresql://…`` or ``postgres://…``. The value may hold a password and is never shown in an error."""
    url: URL | None
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in {"postgresql", "postgres", DRIVER, f"{DRIVER}_async"}:
        raise ConfigurationError(f"{DATABASE_URL} must look like postgresql://USER@HOST/DATABASE")
    if unknown := sorted(url.query.keys() - _parameters()):
        # What follows an unescaped ? or @ of a password is no parameter, and is not shown.
        is_plain = "@" not in value.partition("?")[2] and all(map(_PARAMETER.fullmatch, unknown))
        named = f"the parameter {', '.join(unknown)}" if is_plain else "a parameter"
        raise ConfigurationError(
            f"{DATABASE_URL} has {named}, which PostgreSQL's client library does not know: correct or remove what follows its question mark. "
            "In a password, write ? as %3F and @ as %40"
        )
    return url.set(drivername=DRIVER)


def _parameters() -> set[str]:
    """Return the parameters of a connection that the installed libpq knows."""
    from psycopg.pq import Conninfo  # here, because most commands' --help needs no driver

    return {option.keyword.decode() for option in Conninfo.get_defaults()}


@forgetful
def allow_unsafe(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether keys may go to servers that could log them: ``VOICEASSIST_DB_ALLOW_UNSAFE=1``, for development.

    Raises:
        ConfigurationError: It is set to something else.
    """
    value = environment.get(ALLOW_UNSAFE, "")
    if value not in {"", "0", "1"}:
        raise ConfigurationError(f"{ALLOW_UNSAFE} must be 1 or not set: 1 lets servers see keys, for development only")
    return value == "1"


@forgetful
def trust_local(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether every server on this machine is trusted: ``VOICEASSIST_DB_TRUST_LOCAL=1``, for a proxy beside the application.

    Raises:
        ConfigurationError: It is set to something else.
    """
    value = environment.get(TRUST_LOCAL, "")
    if value not in {"", "0", "1"}:
        raise ConfigurationError(
            f"{TRUST_LOCAL} must be 1 or not set: 1 trusts every server that answers on this machine"
        )
    return value == "1"


@forgetful
def engine_options(environment: Mapping[str, str] = os.environ) -> dict[str, bool]:
    """Return what the environment says to :func:`~voiceassist_db.engine.create_engine`.

    Raises:
        ConfigurationError: A setting has a value that it cannot have.
    """
    return {"allow_unsafe": allow_unsafe(environment), "trust_local": trust_local(environment)}


@forgetful
def key_store_problem(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return what is unsafe about how keys come here; None: nothing, or no key store is configured."""
    if environment.get("ENCRYPTION_KEY"):
        return "ENCRYPTION_KEY holds a key in the environment, which children inherit: for development only"
    text = _vault_address(environment)
    if not text:
        return None
    try:
        address = ServerAddress.parse(text)
    except ConfigurationError as error:
        return str(error)
    name = "VAULT_AGENT_ADDR" if environment.get("VAULT_AGENT_ADDR") else "VAULT_ADDR"
    return f"{name} sends keys to {address.host} without TLS: use https://" if address.is_in_clear else None


@forgetful
def key_provider(environment: Mapping[str, str] = os.environ) -> KeyProvider:
    """Return the key store that the environment names: Vault by ``VAULT_ADDR``, or ``ENCRYPTION_KEY`` for development.

    Args:
        environment: The variables, by default this process's.

    Raises:
        ConfigurationError: Neither is set, both are, or Vault's settings are incomplete.
        UnsafeConnectionError: ``VAULT_ADDR`` is the address of another machine, without TLS.
    """
    address = _vault_address(environment)
    development_key = environment.get("ENCRYPTION_KEY", "")
    if address and development_key:
        name = "VAULT_ADDR" if environment.get("VAULT_ADDR") else "VAULT_AGENT_ADDR"
        raise ConfigurationError(f"{name} and ENCRYPTION_KEY are both set: unset ENCRYPTION_KEY to use Vault's keys")
    if address:
        return _vault(address, environment)
    if development_key:
        from voiceassist_db.providers.environment import EnvironmentKeyProvider

        return EnvironmentKeyProvider(development_key)
    raise ConfigurationError(
        f"no key store is configured. Set VAULT_ADDR and {VAULT_LOGINS}; for development only, ENCRYPTION_KEY."
    )


def _vault_address(environment: Mapping[str, str]) -> str:
    # As for Vault's own tools, an agent stands before the server.
    return environment.get("VAULT_AGENT_ADDR") or environment.get("VAULT_ADDR", "")


def _vault(address: str, environment: Mapping[str, str]) -> KeyProvider:
    # Imported here because hvac takes longer to import than all the rest, and most commands' --help does not need it.
    from voiceassist_db.providers.vault import ClientCertificate, VaultKeyProvider

    cert_file, key_file = environment.get("VAULT_CLIENT_CERT"), environment.get("VAULT_CLIENT_KEY")
    if bool(cert_file) != bool(key_file):
        raise ConfigurationError("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY belong together: set both, or neither")
    ca_file = environment.get("VAULT_CACERT")
    try:
        return VaultKeyProvider(
            address,
            _vault_login(environment),
            mount=None,
            path=_secret_path(environment),
            ca_file=Path(ca_file) if ca_file else None,
            client_certificate=ClientCertificate(Path(cert_file), Path(key_file)) if cert_file and key_file else None,
            namespace=environment.get("VAULT_NAMESPACE") or None,
            allow_unsafe=allow_unsafe(environment),
        )
    except ValueError as error:
        message = str(error)
    raise ConfigurationError(message)


def _secret_path(environment: Mapping[str, str]) -> str:
    path = environment.get("VOICEASSIST_DB_VAULT_PATH", DEFAULT_VAULT_PATH).strip("/")
    parts = path.split("/")
    if len(parts) < 2 or {"", ".", ".."} & set(parts):
        raise ConfigurationError(f"VOICEASSIST_DB_VAULT_PATH must be MOUNT/PATH, such as {DEFAULT_VAULT_PATH}")
    return path


def _vault_login(environment: Mapping[str, str]) -> Login:
    from voiceassist_db.providers import vault

    jwt_file = environment.get("VAULT_JWT_FILE")
    if token := environment.get("VAULT_TOKEN"):
        return vault.TokenLogin(token)
    if token_file := environment.get("VAULT_TOKEN_FILE"):
        return vault.TokenFileLogin(Path(token_file))
    if role_id := environment.get("VAULT_ROLE_ID"):
        if not (secret_id := environment.get("VAULT_SECRET_ID")):
            raise ConfigurationError("VAULT_ROLE_ID is set without VAULT_SECRET_ID: an AppRole login needs both")
        return vault.AppRoleLogin(role_id, secret_id, mount=_auth_mount(environment, "approle"))
    if role := environment.get("VAULT_KUBERNETES_ROLE"):
        return vault.KubernetesLogin(role, mount=_auth_mount(environment, "kubernetes"))
    if role := environment.get("VAULT_JWT_ROLE"):
        if not jwt_file:
            raise ConfigurationError("VAULT_JWT_ROLE is set without VAULT_JWT_FILE: a JWT login needs both")
        return vault.JwtLogin(role, Path(jwt_file), mount=_auth_mount(environment, "jwt"))
    if environment.get("VAULT_AGENT_ADDR"):
        return vault.AgentLogin()
    if environment.get("VAULT_CLIENT_CERT"):
        return vault.CertificateLogin(mount=_auth_mount(environment, "cert"))
    raise ConfigurationError(f"VAULT_ADDR is set, but no login: set {VAULT_LOGINS}")


def _auth_mount(environment: Mapping[str, str], usual: str) -> str:
    mount = (environment.get("VAULT_AUTH_MOUNT") or usual).strip("/").removeprefix("auth/")
    if {"", ".", ".."} & set(mount.split("/")):
        raise ConfigurationError(
            "VAULT_AUTH_MOUNT must be the mount of the auth method, such as approle or auth/approle"
        )
    return mount
