"""The few requests that the key store needs, and the boundary that hvac's and requests' errors do not pass.

Keeps no token and no connection. ``transport`` sends, ``answers`` reads, and here it is decided what an answer means.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote

import urllib3.exceptions

from voiceassist_db.errors import (
    KeysNotFoundError,
    KeyStoreAuthenticationError,
    KeyStoreError,
    KeyStoreForbiddenError,
    VoiceAssistDBError,
)
from voiceassist_db.masking import Masked, Opaque
from voiceassist_db.pacing import turn
from voiceassist_db.providers.vault.answers import Answer, RawSecret
from voiceassist_db.providers.vault.failures import (
    Operation,
    Place,
    deleted,
    foreign,
    impossible_token,
    no_answer,
    no_engine,
    refusal,
)
from voiceassist_db.providers.vault.logins import AppRoleLogin, KubernetesLogin
from voiceassist_db.providers.vault.transport import send

TOKEN: Final = re.compile(r"[!-~]*")
"""What an HTTP header can carry: visible ASCII."""

NO_ANSWER: Final = (OSError, ValueError, HTTPException, urllib3.exceptions.HTTPError)
"""What requests and its parts raise. Most are a kind of OSError, some of ValueError."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A token and its time.

    Attributes:
        token: The token.
        left_s: Seconds until it expires, without a fraction.
        granted_s: Seconds that it was made for; 0 if it never expires.
        renewable: Whether it may be renewed.
    """

    token: Masked
    left_s: float
    granted_s: float
    renewable: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """The secret as it is, with KV's own version of it."""

    fields: RawSecret
    revision: int


class VaultClient(Opaque):
    """Requests about one secret of one server. Every method may raise a KeyStoreError; those say which it adds.

    Args:
        address: URL of the server.
        place: Where the secret is.
        allow_unsafe: Whether the token may go to another machine in clear.
    """

    def __init__(self, address: Masked, place: Place, *, allow_unsafe: bool) -> None:
        self._address = address
        self._allow_unsafe = allow_unsafe
        self.place = place

    def log_in(self, login: AppRoleLogin | KubernetesLogin) -> Lease:
        """Obtain a token. Raises KeyStoreAuthenticationError."""
        if isinstance(login, AppRoleLogin):
            answer = self._ask(Operation.LOG_IN, lambda client: _app_role(client, login))
        else:
            jwt = _service_account_token(login)
            answer = self._ask(Operation.LOG_IN, lambda client: _kubernetes(client, login, jwt))
        return self._lease(answer, Operation.LOG_IN)

    def look_up(self, token: Masked) -> Lease:
        """Ask for a token's time. Raises KeyStoreAuthenticationError where the token is not accepted."""
        answer = self._ask(Operation.LOOK_UP, lambda client: client.auth.token.lookup_self(), token)
        data = answer.branch("data") or RawSecret()
        left_s, granted_s, renewable = data.number("ttl"), data.number("creation_ttl"), data.flag("renewable")
        if left_s is None or granted_s is None or renewable is None:
            raise foreign(self.place, Operation.LOOK_UP, HTTPStatus.OK)
        return Lease(token, left_s, granted_s, renewable)

    def renew(self, token: Masked) -> Lease:
        """Prolong a token. Raises KeyStoreAuthenticationError where the token is not accepted."""
        answer = self._ask(Operation.RENEW, lambda client: client.auth.token.renew_self(), token)
        return self._lease(answer, Operation.RENEW)

    def read(self, token: Masked, *, revision: int | None = None) -> Stored | None:
        """Read the secret; None where nothing was ever stored at the path of a KV v2 engine.

        Args:
            token: The token.
            revision: KV's version of the secret; None for the newest.

        Raises:
            KeysNotFoundError: There is no KV v2 engine at the mount.
            KeysDeletedError: The newest version is deleted or destroyed.
        """
        place = self.place
        answer = self._ask(
            Operation.READ,
            lambda client: client.secrets.kv.v2.read_secret_version(
                place.path, version=revision, mount_point=place.mount, raise_on_deleted_version=True
            ),
            token,
        )
        if not answer:
            self._require_kv2(token)
            return None
        metadata = answer.branch("data", "metadata")
        if metadata is None or "version" not in metadata:
            raise no_engine(place)
        fields, revision = answer.branch("data", "data"), metadata.number("version", least=1)
        if fields is None or revision is None:
            raise foreign(place, Operation.READ, HTTPStatus.OK)
        return Stored(fields, revision)

    def write(self, token: Masked, fields: RawSecret, *, revision: int) -> None:
        """Store the secret if its newest version is still ``revision``; 0 if there must be none.

        Raises:
            KeyStoreConflictError: It is another one; nothing was written.
        """
        place = self.place
        answer = self._ask(
            Operation.WRITE,
            lambda client: client.secrets.kv.v2.create_or_update_secret(
                place.path, fields.expose(), cas=revision, mount_point=place.mount
            ),
            token,
        )
        written = answer.branch("data")
        if written is None or written.number("version", least=1) is None:
            raise foreign(place, Operation.WRITE, HTTPStatus.OK)

    def _require_kv2(self, token: Masked) -> None:
        """Refuse an engine that is not KV v2: KV v1 too says that a path is empty, and would take a write unchecked.

        The endpoint is the one that `vault kv` itself asks. Where it may not be asked, the engine is taken for what it
        should be.
        """
        url = f"/v1/sys/internal/ui/mounts/{quote(self.place.mount)}"
        try:
            answer = self._ask(Operation.EXAMINE, lambda client: client.adapter.get(url=url), token)
        except (KeyStoreForbiddenError, KeysNotFoundError):
            return
        options = answer.branch("data", "options")
        if options is None or "version" not in options or str(options["version"]) != "2":
            raise no_engine(self.place)

    def _ask(self, operation: Operation, request: Callable[[Any], Answer], token: Masked | None = None) -> RawSecret:
        """Make one request: the boundary at which hvac's, requests' and the system's errors become ours.

        Theirs hold request headers and response bodies, that is tokens and keys. So ours are raised outside of the
        except block, where Python does not chain the two.

        Returns:
            The answer's JSON object; empty for a read of a path where nothing is.
        """
        place = self.place
        if token and not TOKEN.fullmatch(token.value):
            raise impossible_token()
        try:
            with turn():
                answer = send(
                    request,
                    address=self._address,
                    token=token,
                    verify=True if place.ca_file is None else str(place.ca_file),
                    timeout_s=place.timeout_s,
                    namespace=place.namespace,
                    allow_unsafe=self._allow_unsafe,
                )
        except NO_ANSWER as error:
            failure: VoiceAssistDBError = no_answer(place, operation, error)
        else:
            if answer.status == HTTPStatus.OK and answer.body:
                return answer.body
            if operation is Operation.READ and answer.status == HTTPStatus.NOT_FOUND and answer.errors == []:
                return RawSecret()
            failure = self._failure(operation, answer)
        raise failure

    def _failure(self, operation: Operation, answer: Answer) -> KeyStoreError:
        if answer.status < HTTPStatus.BAD_REQUEST:
            return foreign(self.place, operation, answer.status)
        if operation is Operation.READ and answer.status == HTTPStatus.NOT_FOUND and answer.body:
            metadata = answer.body.branch("data", "metadata")
            if metadata and (failure := deleted(self.place, metadata)):
                return failure
        return refusal(self.place, operation, answer.status, answer.errors)

    def _lease(self, answer: RawSecret, operation: Operation) -> Lease:
        auth = answer.branch("auth") or RawSecret()
        left_s, renewable = auth.number("lease_duration"), auth.flag("renewable")
        if not _is_token(auth) or left_s is None or renewable is None:
            raise foreign(self.place, operation, HTTPStatus.OK)
        return Lease(Masked(auth["client_token"]), left_s, left_s, renewable)


def _is_token(auth: RawSecret) -> bool:
    return (
        "client_token" in auth
        and isinstance(auth["client_token"], str)
        and bool(TOKEN.fullmatch(auth["client_token"] or " "))
    )


def _app_role(client: Any, login: AppRoleLogin) -> Any:
    return client.auth.approle.login(login.role_id, login.secret_id, use_token=False, mount_point=login.mount)


def _kubernetes(client: Any, login: KubernetesLogin, jwt: Masked) -> Any:
    return client.auth.kubernetes.login(login.role, jwt.value, use_token=False, mount_point=login.mount)


def _service_account_token(login: KubernetesLogin) -> Masked:
    try:
        return Masked(login.jwt_file.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        pass  # raised below, unchained: a decoding error holds the text
    raise KeyStoreAuthenticationError(
        f"the service account's token {login.jwt_file} cannot be read: is this a pod, and is its token mounted "
        "(automountServiceAccountToken)?"
    )
