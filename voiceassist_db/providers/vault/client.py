"""The few requests that the key store needs, and the boundary that hvac's and requests' errors do not pass.

Keeps no token and no connection. ``transport`` sends, ``answers`` reads, and here it is decided what an answer means.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote

import urllib3.exceptions

from voiceassist_db.errors import (
    KeysNotFoundError,
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
    mount_alone,
    no_answer,
    no_engine,
    other_mount,
    refusal,
)
from voiceassist_db.providers.vault.logins import MethodLogin
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

    def log_in(self, login: MethodLogin) -> Lease:
        """Obtain a token. Raises KeyStoreAuthenticationError."""
        url, proof = f"/v1/auth/{quote(login.mount)}/login", login.proof()
        answer = self._ask(Operation.LOG_IN, lambda client: client.adapter.post(url, json=proof.expose()))
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
            KeysNotFoundError: There is no KV v2 engine at the mount, or the path is that of the mount alone.
            KeysDeletedError: The newest version is deleted or destroyed.
        """
        answer = self._read(token, revision)
        place = self.place
        if not answer:
            self._examine(token)
            return None
        metadata = answer.branch("data", "metadata")
        if metadata is None or "version" not in metadata:
            raise no_engine(place)
        fields, revision = answer.branch("data", "data"), metadata.number("version", least=1)
        if fields is None or revision is None:
            raise foreign(place, Operation.READ, HTTPStatus.OK)
        if not place.is_mount_known:
            self.place = replace(place, is_mount_known=True)
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

    def _read(self, token: Masked, revision: int | None) -> RawSecret:
        """Read at the mount, which is taken for the first part of the path until the server says otherwise.

        Most mounts have one part, and a question in advance would delay each start by the pace of requests. No mount lies
        within another one, so a wrong part leads to no engine.
        """
        if not self.place.is_mount_known and self.place.is_ambiguous:
            self._examine(token)
        failure: KeyStoreError
        try:
            return self._read_once(token, revision)
        except (KeyStoreForbiddenError, KeysNotFoundError) as error:
            if self.place.is_mount_known:
                raise
            failure = error
        self._examine(token)
        if self.place.is_mount_known:
            return self._read_once(token, revision)
        raise failure

    def _read_once(self, token: Masked, revision: int | None) -> RawSecret:
        place = self.place
        return self._ask(
            Operation.READ,
            lambda client: client.secrets.kv.v2.read_secret_version(
                place.path, version=revision, mount_point=place.mount, raise_on_deleted_version=True
            ),
            token,
        )

    def _examine(self, token: Masked) -> None:
        """Learn which part of the secret's path is the mount, and refuse an engine that is not KV v2.

        KV v1 too says that a path is empty, and would take a write unchecked. The endpoint is the one that `vault kv` itself
        asks. Where it may not be asked, the engine is taken for what it should be.
        """
        place = self.place
        url = f"/v1/sys/internal/ui/mounts/{quote(place.whole)}"
        try:
            answer = self._ask(Operation.EXAMINE, lambda client: client.adapter.get(url=url), token)
        except (KeyStoreForbiddenError, KeysNotFoundError):
            return
        data = answer.branch("data") or RawSecret()
        found = data["path"].strip("/") if "path" in data and isinstance(data["path"], str) else ""
        # The server chooses where the path is split, and nothing else.
        if not found or not f"{place.whole}/".startswith(f"{found}/"):
            raise foreign(place, Operation.EXAMINE, HTTPStatus.OK)
        if place.is_mount_known and found != place.mount:
            raise other_mount(place, found)
        if found == place.whole:
            raise mount_alone(place)
        located = replace(place, mount=found, path=place.whole[len(found) + 1 :], is_mount_known=True)
        options = data.branch("options")
        if options is None or "version" not in options or str(options["version"]) != "2":
            raise no_engine(located, is_version_1="type" in data and data["type"] == "kv")
        self.place = located

    def _ask(self, operation: Operation, request: Callable[[Any], Answer], token: Masked | None = None) -> RawSecret:
        """Make one request: the boundary at which hvac's, requests' and the system's errors become ours.

        Theirs hold request headers and response bodies, that is tokens and keys. So ours are raised outside of the
        except block, where Python does not chain the two.

        Returns:
            The answer's JSON object; empty for a read of a path where nothing is.
        """
        place = self.place
        if token and not TOKEN.fullmatch(token.value):
            raise impossible_token(place)
        try:
            with turn():
                answer = send(
                    request,
                    address=self._address,
                    token=token,
                    verify=True if place.ca_file is None else str(place.ca_file),
                    certificate=place.certificate,
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
