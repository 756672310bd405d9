"""What each failure of Vault means, and what to do about it: the wording of every error of this package.

Owns the translation into :mod:`voiceassist_db.errors`. A message is made of the address, mount, path, namespace, status
and KV version alone: what the server answered is looked at, and never repeated.
"""

from __future__ import annotations

import enum
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

import requests
import urllib3.exceptions

from voiceassist_db.errors import (
    KeysDeletedError,
    KeysNotFoundError,
    KeyStoreAuthenticationError,
    KeyStoreConflictError,
    KeyStoreError,
    KeyStoreForbiddenError,
    KeyStoreSealedError,
    KeyStoreTLSError,
    KeyStoreUnavailableError,
    UnsafeConnectionError,
    VoiceAssistDBError,
)
from voiceassist_db.providers.vault.answers import RawSecret
from voiceassist_db.providers.vault.logins import GivenLogin, Login
from voiceassist_db.providers.vault.transport import (
    ClientCertificate,
    ClientCertificateError,
    ElsewhereError,
    TooLongError,
)

ErrorT = TypeVar("ErrorT", bound=BaseException)

_DENIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_LOGIN_REFUSED: Final = _DENIED | {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}
_SEALED: Final = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.SERVICE_UNAVAILABLE})
_LATER: Final = frozenset({412, 429, 500, 502, 503, 504})
"""Statuses that pass by themselves: 412 and 429 (Vault's HTTP API, "HTTP status codes"), 500 for a moment after
unsealing, and what a proxy answers for a server that is down or hung."""

_CONFLICT: Final = "check-and-set parameter did not match"
"""From Vault's and OpenBao's KV engine; the same status 400 stands for other mistakes."""

_OF_POLICIES: Final = frozenset({"data", "metadata"})
"""What stands between mount and path in Vault's API for KV v2, and so in policies."""

_NO_NAMESPACE: Final = "namespace not found"


class Operation(enum.Enum):
    """What a request is for: the same status means different things."""

    LOG_IN = "log in"
    LOOK_UP = "look the token up"
    RENEW = "renew the token"
    EXAMINE = "examine the mount"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the secret is.

    Attributes:
        address: URL of the server as it may be shown, without credentials.
        mount: Mount of the KV v2 engine.
        path: Path below it.
        is_mount_known: Whether ``mount`` is more than the first part of a path whose mount the server has yet to name.
        namespace: Namespace of both.
        login: How to log in.
        ca_file: Authorities that are trusted; None for the public ones.
        certificate: The client certificate; None for none.
        timeout_s: Seconds that connecting may take, and again the whole answer.
    """

    address: str
    mount: str
    path: str
    is_mount_known: bool
    namespace: str | None
    login: Login
    ca_file: Path | None
    certificate: ClientCertificate | None
    timeout_s: float

    def __str__(self) -> str:
        """Return mount, path and namespace, as messages name the secret."""
        return self.whole + (f" (namespace {self.namespace})" if self.namespace else "")

    @property
    def whole(self) -> str:
        """Mount and path."""
        return f"{self.mount}/{self.path}"

    @property
    def is_ambiguous(self) -> bool:
        """Whether the API's path for one mount is that of another secret for another mount."""
        return not _OF_POLICIES.isdisjoint(self.path.split("/"))

    @property
    def as_meant(self) -> str | None:
        """Mount and path without the ``data/`` of a policy; None where there is none."""
        first, _, rest = self.path.partition("/")
        return f"{self.mount}/{rest}" if first in _OF_POLICIES and rest else None


def in_clear(place: Place) -> str:
    """Say why nothing is sent to an address of another machine without TLS."""
    return (
        f"{place.address} is another machine, and http would send it the token and the keys in clear: use https:// in "
        "VAULT_ADDR, and VAULT_CACERT for an authority of your own"
    )


def refused_in_clear(place: Place) -> UnsafeConnectionError:
    """Say that nothing was sent, and how it could be."""
    return UnsafeConnectionError(
        f"no token was sent to Vault: {in_clear(place)}. VOICEASSIST_DB_ALLOW_UNSAFE=1 (or allow_unsafe=True) goes on all "
        "the same, for development without real patients."
    )


def no_answer(place: Place, operation: Operation, error: Exception) -> VoiceAssistDBError:
    """Translate an error of requests, or of the system, before there was an answer."""
    if _found(error, ElsewhereError):
        return refused_in_clear(place)
    if _found(error, TooLongError) or not isinstance(error, OSError):
        return foreign(place, operation, 0)
    if _found(error, ClientCertificateError):
        return _unusable_certificate(place)
    if (alert := _found(error, ssl.SSLError)) and _is_about_our_certificate(alert):
        return _certificate_refused(place)
    plain = not isinstance(error, requests.exceptions.RequestException)  # requests and ssl on a bad CA file
    if plain or isinstance(error, requests.exceptions.SSLError):
        untrusted = _found(error, ssl.SSLCertVerificationError)
        return KeyStoreTLSError(
            f"no trusted TLS connection to Vault at {place.address}{f' ({untrusted.verify_message})' if untrusted else ''}: "
            "set VAULT_CACERT to the file of the authority that signed its certificate (now: "
            f"{place.ca_file or 'the public ones'}), and check that the server speaks TLS"
        )
    if isinstance(error, requests.exceptions.Timeout) or _found(error, urllib3.exceptions.ReadTimeoutError):
        return _unavailable(place, operation, f"did not answer within {place.timeout_s:g} s")
    return _unavailable(place, operation, "cannot be reached")


def _is_about_our_certificate(alert: ssl.SSLError) -> bool:
    """Say whether the server ended the connection because of the client's certificate, or because it had none."""
    reason = alert.reason or ""
    return "_ALERT_" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason)


def _unusable_certificate(place: Place) -> KeyStoreTLSError:
    assert place.certificate is not None
    return KeyStoreTLSError(
        f"the client certificate {place.certificate.cert_file} cannot be used with the key {place.certificate.key_file}: "
        "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY must be readable PEM files of one pair, and the key must have no pass phrase"
    )


def _certificate_refused(place: Place) -> KeyStoreTLSError:
    now = "no client certificate was sent"
    if place.certificate is not None:
        now = f"the client certificate {place.certificate.cert_file} was refused"
    return KeyStoreTLSError(
        f"Vault at {place.address} requires a client certificate that it trusts, and {now}: set VAULT_CLIENT_CERT and "
        "VAULT_CLIENT_KEY to a valid one of the authority that its listener trusts (tls_client_ca_file)"
    )


def foreign(place: Place, operation: Operation, status: int) -> KeyStoreError:
    """Say that an answer is not Vault's."""
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return KeyStoreError(
            f"Vault at {place.address} redirects to another address, to which the token was not sent: set VAULT_ADDR "
            "to the active node, or to one that forwards requests to it"
        )
    return KeyStoreError(
        f"{place.address} answered a request to {operation.value}{f' with HTTP {status}' if status else ''}, but not "
        "as Vault does: check VAULT_ADDR, whether it is http or https, and what stands between"
    )


def refusal(place: Place, operation: Operation, status: int, errors: Sequence[str] | None) -> KeyStoreError:
    """Translate an answer with a status of failure.

    Args:
        place: Where the secret is.
        operation: What was asked.
        status: The HTTP status.
        errors: The field ``errors`` of a JSON answer, as Vault's have it; else None.
    """
    if status in _SEALED and errors:
        return KeyStoreSealedError(
            f"Vault at {place.address} is sealed, or was never initialised: unseal it (`vault operator unseal`)"
        )
    if status in _LATER:
        return _unavailable(place, operation, f"answered HTTP {status}")
    if errors is None:
        return foreign(place, operation, status)
    return _refused(place, operation, status, errors)


def no_engine(place: Place, *, is_version_1: bool = False) -> KeysNotFoundError:
    """Say that the mount is not that of a KV v2 engine."""
    create = f"`vault secrets enable -path={place.mount} -version=2 kv`, and then `voiceassist-db init-keys`"
    if not place.is_mount_known:
        return KeysNotFoundError(
            f"Vault at {place.address} has no KV engine of version 2 at any part of {place}: correct "
            f"VOICEASSIST_DB_VAULT_PATH (`vault secrets list` shows the mounts), or run {create}"
        )
    found = f"Vault at {place.address} has no KV engine of version 2 at the mount {place.mount}"
    if is_version_1:
        return KeysNotFoundError(
            f"{found}: the engine there has version 1. Correct the path, or run `vault kv enable-versioning {place.mount}`, "
            "and then `voiceassist-db init-keys`"
        )
    return KeysNotFoundError(f"{found}: correct the path, or run {create}")


def other_mount(place: Place, found: str) -> KeysNotFoundError:
    """Say that the engine is mounted at another part of the path than the caller said."""
    return KeysNotFoundError(
        f"Vault at {place.address} has no mount {place.mount}: its mount {found} holds {place}. Correct the mount and the "
        "path, without the `data/` of policies"
    )


def mount_alone(place: Place) -> KeysNotFoundError:
    """Say that a path names an engine and no secret of it."""
    return KeysNotFoundError(
        f"{place} is the mount of an engine of Vault at {place.address}, and no secret: add the secret's path to "
        f"VOICEASSIST_DB_VAULT_PATH, such as {place.whole}/voiceassist/encryption"
    )


def of_a_policy(place: Place) -> str:
    """Return what to do about a path that was copied from a policy; empty where it was not."""
    if place.as_meant is None:
        return ""
    return f"`data/` belongs to policies and to Vault's API, so set VOICEASSIST_DB_VAULT_PATH to {place.as_meant}"


def _refused(place: Place, operation: Operation, status: int, errors: Sequence[str]) -> KeyStoreError:
    if operation is Operation.LOG_IN and status in _LOGIN_REFUSED:
        return _login_refused(place)
    if operation in {Operation.LOOK_UP, Operation.RENEW} and status in _DENIED:
        return KeyStoreAuthenticationError(
            f"Vault at {place.address} does not accept the token: it is wrong, expired or revoked (or it lacks the "
            f"policy `default` and may not look itself up). {place.login.advice}"
        )
    if status in _DENIED:
        return _forbidden(place, operation)
    if status == HTTPStatus.NOT_FOUND:
        return _no_namespace(place) if any(_NO_NAMESPACE in each for each in errors) else no_engine(place)
    if operation is Operation.WRITE and any(_CONFLICT in each for each in errors):
        message = f"somebody else wrote {place} first, and nothing was written: read it and try again"
        return KeyStoreConflictError(message)
    message = f"Vault at {place.address} refused to {operation.value} ({place}) with HTTP {status}: see Vault's own log"
    return KeyStoreError(message)


def _login_refused(place: Place) -> KeyStoreAuthenticationError:
    login = place.login
    where = "" if isinstance(login, GivenLogin) else f" at auth/{login.mount}/login"
    return KeyStoreAuthenticationError(
        f"Vault at {place.address} refused the login{where}: check {login.advice}, the mount of the auth method "
        f"(VAULT_AUTH_MOUNT), and the namespace ({place.namespace or 'VAULT_NAMESPACE is not set'})"
    )


def _no_namespace(place: Place) -> KeysNotFoundError:
    return KeysNotFoundError(f"Vault at {place.address} has no namespace {place.namespace}: check VAULT_NAMESPACE")


def _unavailable(place: Place, operation: Operation, what: str) -> KeyStoreUnavailableError:
    unknown = " Whether the secret was written is not known: read it first." if operation is Operation.WRITE else ""
    return KeyStoreUnavailableError(
        f"Vault at {place.address} {what}: check that it runs, and VAULT_ADDR, or VAULT_AGENT_ADDR if that is set "
        f"(http or https, host, port).{unknown}"
    )


def _forbidden(place: Place, operation: Operation) -> KeyStoreForbiddenError:
    capabilities = '["create", "read", "update"]' if operation is Operation.WRITE else '["read"]'
    policy = f'`path "{place.mount}/data/{place.path}" {{ capabilities = {capabilities} }}`'
    denied = f"the login to Vault works, but no policy of it permits to {operation.value} {place}"
    if copied := of_a_policy(place):
        return KeyStoreForbiddenError(f"{denied}: {copied}")
    if not place.is_mount_known:
        return KeyStoreForbiddenError(
            f"{denied}, or no KV engine is mounted there: add {policy}, or correct VOICEASSIST_DB_VAULT_PATH. In the policy, "
            f"`data/` follows the mount of the engine, which may be longer than {place.mount} (`vault secrets list`)"
        )
    return KeyStoreForbiddenError(f"{denied}: add {policy}, or correct the path")


def deleted(place: Place, metadata: RawSecret) -> KeysDeletedError | None:
    """Say that the newest version was deleted, given the metadata of it; None where they do not have Vault's form."""
    version, is_destroyed = metadata.number("version", least=1), metadata.flag("destroyed")
    if version is None or is_destroyed is None:
        return None
    mount = f"-mount={place.mount}"
    what, remedy = "deleted", f"`vault kv undelete {mount} -versions={version} {place.path}` brings it back"
    if is_destroyed:
        what = "destroyed"
        remedy = f"`vault kv rollback {mount} -version=NUMBER {place.path}` brings an earlier one back"
    return KeysDeletedError(
        f"version {version} of {place}, the newest, was {what}: {remedy}. Only where nothing was ever encrypted with "
        f"it, begin anew: `vault kv metadata delete {mount} {place.path}`."
    )


def impossible_token(place: Place) -> KeyStoreAuthenticationError:
    """Say that a token cannot be sent."""
    return KeyStoreAuthenticationError(f"the Vault token holds characters that no token has. {place.login.advice}")


def _found(error: BaseException, kind: type[ErrorT]) -> ErrorT | None:
    """Return the first of a kind among an error and what hangs on it."""
    return next((each for each in _chain(error) if isinstance(each, kind)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        each = todo.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            todo += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
