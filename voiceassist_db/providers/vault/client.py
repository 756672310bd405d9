"""The only door to hvac: the few requests that the key store needs, and the boundary that its errors do not pass.

Keeps no token and no connection: each request has a session of its own, so that no other thread, forked child or
connection that a firewall dropped meanwhile can disturb it. hvac itself takes a client certificate from
``VAULT_CLIENT_CERT`` and ``VAULT_CLIENT_KEY``, as Vault's own tools do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import hvac
import requests
from hvac.exceptions import VaultError

from voiceassist_db.errors import (
    KeysNotFoundError,
    KeyStoreAuthenticationError,
    KeyStoreError,
    KeyStoreForbiddenError,
)
from voiceassist_db.providers.vault.failures import Operation, Place, foreign, invalid, no_answer, no_engine, refusal
from voiceassist_db.providers.vault.logins import AppRoleLogin, KubernetesLogin, Masked, RawSecret


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


class VaultClient:
    """Requests about one secret of one server. Every method may raise a KeyStoreError; those say which it adds."""

    def __init__(self, address: Masked, place: Place) -> None:
        self._address = address
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
        data = _branch(answer, "data")
        return Lease(token, _seconds(data, "ttl"), _seconds(data, "creation_ttl"), data.get("renewable") is True)

    def renew(self, token: Masked) -> Lease:
        """Prolong a token. Raises KeyStoreAuthenticationError where the token is not accepted."""
        answer = self._ask(Operation.RENEW, lambda client: client.auth.token.renew_self(), token)
        return self._lease(answer, Operation.RENEW)

    def read(self, token: Masked) -> Stored | None:
        """Read the secret's newest version; None where nothing was ever stored at the path of a KV v2 engine.

        Raises:
            KeysNotFoundError: There is no KV v2 engine at the mount.
            KeysDeletedError: The newest version is deleted or destroyed.
        """
        place = self.place
        answer = self._ask(
            Operation.READ,
            lambda client: client.secrets.kv.v2.read_secret_version(
                place.path, mount_point=place.mount, raise_on_deleted_version=True
            ),
            token,
        )
        if not answer:
            self._require_kv2(token)
            return None
        revision = _branch(answer, "data", "metadata").get("version")
        if not isinstance(revision, int):
            raise no_engine(place)
        return Stored(_branch(answer, "data", "data"), revision)

    def write(self, token: Masked, fields: RawSecret, *, revision: int) -> None:
        """Store the secret if its newest version is still ``revision``; 0 if there must be none.

        Raises:
            KeyStoreConflictError: It is another one; nothing was written.
        """
        place = self.place
        answer = self._ask(
            Operation.WRITE,
            lambda client: client.secrets.kv.v2.create_or_update_secret(
                place.path, fields, cas=revision, mount_point=place.mount
            ),
            token,
        )
        if not isinstance(_branch(answer, "data").get("version"), int):
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
        if str(_branch(answer, "data", "options").get("version")) != "2":
            raise no_engine(self.place)

    def _ask(self, operation: Operation, request: Callable[[Any], Any], token: Masked | None = None) -> RawSecret:
        """Make one request: the boundary at which hvac's, requests' and the system's errors become ours.

        Theirs hold request headers and response bodies, that is tokens and keys. So ours are raised outside of the
        except block, where Python does not chain the two.

        Returns:
            The answer's JSON object; empty for a read of a path where nothing is.
        """
        statuses = [0]
        answer = RawSecret()
        failure: KeyStoreError | None = None
        try:
            answer = self._send(request, token, statuses)
        except VaultError as error:
            if operation is Operation.READ and statuses[-1] == HTTPStatus.NOT_FOUND and error.errors == []:
                return RawSecret()
            metadata = _branch(error.json, "data", "metadata") if operation is Operation.READ else RawSecret()
            failure = refusal(self.place, operation, statuses[-1], error.errors, metadata)
        except OSError as error:  # requests' own errors are a kind of it
            failure = no_answer(self.place, operation, error)
        except (AttributeError, TypeError, ValueError) as error:
            failure = invalid(self.place, operation, error, statuses[-1])
        if failure is None and not answer:
            failure = foreign(self.place, operation, statuses[-1])
        if failure is not None:
            raise failure
        return answer

    def _send(self, request: Callable[[Any], Any], token: Masked | None, statuses: list[int]) -> RawSecret:
        with requests.Session() as session:
            session.trust_env = False  # no proxy and no .netrc of the environment may see a token
            session.verify = True if self.place.ca_file is None else str(self.place.ca_file)
            session.hooks["response"].append(lambda response, **_: statuses.append(response.status_code))
            client = hvac.Client(
                url=self._address.value,
                token=token.value if token else "",  # for None, hvac would look in VAULT_TOKEN and ~/.vault-token
                verify=session.verify,
                timeout=self.place.timeout_s,
                allow_redirects=False,  # requests would carry the token's header along to any host
                session=session,
                namespace=self.place.namespace,
            )
            answer = request(client)
            return RawSecret(answer) if isinstance(answer, dict) else RawSecret()

    def _lease(self, answer: RawSecret, operation: Operation) -> Lease:
        auth = _branch(answer, "auth")
        if not isinstance(auth.get("client_token"), str):
            raise foreign(self.place, operation, HTTPStatus.OK)
        left_s = _seconds(auth, "lease_duration")
        return Lease(Masked(auth["client_token"]), left_s, left_s, auth.get("renewable") is True)


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


def _branch(tree: object, *names: str) -> RawSecret:
    """Follow names down a JSON object; an empty branch where one is missing."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return RawSecret(tree) if isinstance(tree, dict) else RawSecret()


def _seconds(data: RawSecret, name: str) -> float:
    value = data.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
