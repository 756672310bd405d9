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
from voiceassist_db.providers.vault.transport import ElsewhereError, TooLongError

ErrorT = TypeVar("ErrorT", bound=BaseException)

_DENIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_LOGIN_REFUSED: Final = _DENIED | {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}
_SEALED: Final = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.SERVICE_UNAVAILABLE})
_LATER: Final = frozenset({412, 429, 500, 502, 503, 504})
"""Statuses that pass by themselves: 412 and 429 (Vault's HTTP API, "HTTP status codes"), 500 for a moment after
unsealing, and what a proxy answers for a server that is down or hung."""

_CONFLICT: Final = "check-and-set parameter did not match"
"""From Vault's and OpenBao's KV engine; the same status 400 stands for other mistakes."""

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
        namespace: Namespace of both.
        ca_file: Authorities that are trusted; None for the public ones.
        timeout_s: Seconds that connecting may take, and again the whole answer.
    """

    address: str
    mount: str
    path: str
    namespace: str | None
    ca_file: Path | None
    timeout_s: float

    def __str__(self) -> str:
        """Return mount, path and namespace, as messages name the secret."""
        return f"{self.mount}/{self.path}" + (f" (namespace {self.namespace})" if self.namespace else "")


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


def no_engine(place: Place) -> KeysNotFoundError:
    """Say that the mount is not that of a KV v2 engine."""
    return KeysNotFoundError(
        f"Vault at {place.address} has no KV engine of version 2 at the mount {place.mount}: correct the path, or run "
        f"`vault secrets enable -path={place.mount} -version=2 kv`, and then `voiceassist-db init-keys`"
    )


def _refused(place: Place, operation: Operation, status: int, errors: Sequence[str]) -> KeyStoreError:
    if operation is Operation.LOG_IN and status in _LOGIN_REFUSED:
        return KeyStoreAuthenticationError(
            f"Vault at {place.address} refused the login: check the role, its secret id or service account, the mount "
            "of the auth method, and the namespace"
        )
    if operation in {Operation.LOOK_UP, Operation.RENEW} and status in _DENIED:
        return KeyStoreAuthenticationError(
            f"Vault at {place.address} does not accept the token: it is wrong, expired or revoked (or it lacks the "
            "policy `default` and may not look itself up). Set VAULT_TOKEN to a new one."
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


def _no_namespace(place: Place) -> KeysNotFoundError:
    return KeysNotFoundError(f"Vault at {place.address} has no namespace {place.namespace}: check VAULT_NAMESPACE")


def _unavailable(place: Place, operation: Operation, what: str) -> KeyStoreUnavailableError:
    unknown = " Whether the secret was written is not known: read it first." if operation is Operation.WRITE else ""
    return KeyStoreUnavailableError(
        f"Vault at {place.address} {what}: check that it runs, and VAULT_ADDR (http or https, host, port).{unknown}"
    )


def _forbidden(place: Place, operation: Operation) -> KeyStoreForbiddenError:
    capabilities = '["create", "read", "update"]' if operation is Operation.WRITE else '["read"]'
    return KeyStoreForbiddenError(
        f"the login to Vault works, but no policy of it permits to {operation.value} {place}: add "
        f'`path "{place.mount}/data/{place.path}" {{ capabilities = {capabilities} }}`, or correct the path'
    )


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


def impossible_token() -> KeyStoreAuthenticationError:
    """Say that a token cannot be sent."""
    return KeyStoreAuthenticationError("the Vault token holds characters that no token has: set VAULT_TOKEN again")


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
