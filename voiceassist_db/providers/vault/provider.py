"""The key store in Vault: reads and writes the secret, every write by check-and-set.

Owns the rule of what may be written over what. ``client`` speaks to the server, ``tokens`` keeps the login alive,
``secret`` knows the fields and ``failures`` the wording of errors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from voiceassist_db.addresses import ServerAddress
from voiceassist_db.errors import (
    ConfigurationError,
    KeysDeletedError,
    KeysNotFoundError,
    KeyStoreConflictError,
    KeyStoreForbiddenError,
)
from voiceassist_db.keys import KeySet
from voiceassist_db.masking import Masked, Opaque
from voiceassist_db.providers.vault.answers import RawSecret
from voiceassist_db.providers.vault.client import Stored, VaultClient
from voiceassist_db.providers.vault.failures import Place, in_clear, of_a_policy, refused_in_clear
from voiceassist_db.providers.vault.logins import CertificateLogin, GivenLogin, Login
from voiceassist_db.providers.vault.secret import KEY, key_set, with_keys
from voiceassist_db.providers.vault.tokens import GivenToken, LoginToken
from voiceassist_db.providers.vault.transport import ClientCertificate
from voiceassist_db.quantities import require_number
from voiceassist_db.tracebacks import forgetful

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_NAMESPACE: Final = re.compile(r"[!-~]+")
"""What an HTTP header can carry: visible ASCII."""


class VaultKeyProvider(Opaque):
    """Keys in one secret of a KV v2 engine of Vault or OpenBao. Thread-safe, and safe to fork.

    Every method may raise, besides what it says: :class:`KeyStoreUnavailableError`, :class:`KeyStoreSealedError`,
    :class:`KeyStoreTLSError`, :class:`KeyStoreAuthenticationError`, :class:`KeyStoreForbiddenError`,
    :class:`KeysDeletedError` if the secret's newest version is deleted, :class:`KeysNotFoundError` if there is no KV v2
    engine at the mount, and :class:`KeyStoreError` for the rest. None carries or chains a token, a key or an answer.
    :class:`UnsafeConnectionError` is raised where ``localhost`` leads to another machine.
    """

    @forgetful
    def __init__(  # one deployment's settings; all but two are optional and keyword-only
        self,
        address: str,
        login: Login,
        *,
        mount: str | None = "secret",
        path: str = "voiceassist/encryption",
        ca_file: Path | None = None,
        client_certificate: ClientCertificate | None = None,
        namespace: str | None = None,
        timeout_s: float = 5.0,
        allow_unsafe: bool = False,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            address: URL of the server, as in ``VAULT_ADDR``.
            login: How to log in.
            mount: Where the KV v2 engine is mounted. None: ``path`` begins with the mount, and Vault says where it ends.
            path: The secret's path below it.
            ca_file: PEM file of the authorities to trust instead of the public ones.
            client_certificate: Certificate for a server that asks for one.
            namespace: Namespace of mount and login.
            timeout_s: Seconds that connecting may take, and again the whole answer. Callers of a database wait no longer than this.
            allow_unsafe: Send the token and keys to another machine without TLS, with a warning. For development.

        Raises:
            ConfigurationError: The address is not one.
            UnsafeConnectionError: The address is that of another machine, without TLS.
            ValueError: The mount or the path is empty or has an empty part or ``..``, the namespace is not visible ASCII, the
                timeout is not positive or not finite, or a login by certificate has none.
        """
        is_mount_known = mount is not None
        path = path.strip("/")
        if mount is None:
            mount, _, path = path.partition("/")
        else:
            mount = mount.strip("/")
        if {"", ".", ".."} & {*mount.split("/"), *path.split("/")}:
            raise ValueError("mount and path must not be empty, nor have an empty part, `.` or `..` between slashes")
        if isinstance(login, CertificateLogin) and client_certificate is None:
            raise ValueError("CertificateLogin needs a client_certificate")
        require_number("timeout_s", timeout_s, is_open=True)
        if namespace is not None and not _NAMESPACE.fullmatch(namespace):
            raise ValueError("namespace must be visible ASCII characters: an HTTP header carries it")
        server = ServerAddress.parse(address)
        place = Place(
            address=server.shown,
            mount=mount,
            path=path,
            is_mount_known=is_mount_known,
            namespace=namespace,
            login=login,
            ca_file=ca_file,
            certificate=client_certificate,
            timeout_s=timeout_s,
        )
        if server.is_in_clear:
            if not allow_unsafe:
                raise refused_in_clear(place)
            logger.warning("%s. For development only, never for real patients.", in_clear(place))
        self.timeout_s = timeout_s
        self._client = VaultClient(server.url, place, allow_unsafe=allow_unsafe)
        self._token: GivenToken | LoginToken = (
            GivenToken(self._client, login) if isinstance(login, GivenLogin) else LoginToken(self._client, login)
        )

    def __repr__(self) -> str:
        return f"<VaultKeyProvider {self._client.place} at {self._client.place.address}>"

    @forgetful
    def fetch(self) -> KeySet:
        """Read the keys, and renew a given token that has lived half of its time.

        Raises:
            KeysNotFoundError: There are none yet.
            MalformedKeyError: A field is not of its form; the message names it.
        """
        stored = self._permitted(self._client.read)
        self._token.keep_alive()
        if stored is None or KEY not in stored.fields:
            raise self._not_found(stored)
        return key_set(stored.fields, revision=stored.revision, where=str(self._client.place))

    @forgetful
    def earlier(self, revision: int) -> KeySet | None:
        """Read the keys of an earlier version of the secret; None where it is deleted or held none.

        Raises:
            MalformedKeyError: A field is not of its form.
        """
        try:
            stored = self._permitted(lambda token: self._client.read(token, revision=revision))
        except KeysDeletedError:
            return None
        if stored is None or KEY not in stored.fields:
            return None
        return key_set(stored.fields, revision=stored.revision, where=str(self._client.place))

    def restoring(self, revision: int) -> str:
        """Return the command that brings an earlier version of the secret back."""
        place = self._client.place
        return f"vault kv rollback -mount={place.mount} -version={revision} {place.path}"

    def adding(self, revision: int, field: str, version: int) -> str:
        """Return the command that adds a key of an earlier version to the newest. No key is shown, nor an argument."""
        place = self._client.place
        read = f"vault kv get -mount={place.mount} -version={revision} -field={field} {place.path}"
        return (
            f"{read} | vault kv patch -mount={place.mount} {place.path} previous_key=- previous_key_version={version}"
        )

    @forgetful
    def create(self, keys: KeySet) -> None:
        """Store the first keys, beside the fields of others that the secret may have.

        Raises:
            KeyStoreConflictError: There is a ``key`` already, or somebody wrote meanwhile; nothing was written.
            KeysDeletedError: There was a secret; it must be restored, or removed with its history.
            ConfigurationError: The path has the ``data/`` of a policy, where nothing new is stored.
        """
        stored = self._permitted(self._client.read)
        if copied := of_a_policy(self._client.place):
            raise ConfigurationError(f"nothing was written to {self._client.place}: {copied}")
        if stored is not None and KEY in stored.fields:
            raise KeyStoreConflictError(f"{self._client.place} holds a key already: nothing was written")
        fields, revision = (RawSecret(), 0) if stored is None else (stored.fields, stored.revision)
        self._write(fields, keys, revision)

    @forgetful
    def replace(self, old: KeySet, new: KeySet) -> None:
        """Store ``new``, whose None removes a field, where the secret is still at ``old``'s revision.

        Raises:
            KeyStoreConflictError: It is at another one; nothing was written.
            KeysNotFoundError: It is gone.
        """
        stored = self._permitted(self._client.read)
        if stored is None:
            raise self._not_found(stored)
        if stored.revision != old.revision:
            raise KeyStoreConflictError(
                f"{self._client.place} is at version {stored.revision} and no longer at {old.revision}: somebody else "
                "wrote it, and nothing was written. Read it and try again."
            )
        self._write(stored.fields, new, stored.revision)

    def _write(self, fields: RawSecret, keys: KeySet, revision: int) -> None:
        merged = with_keys(fields, keys)
        self._permitted(lambda token: self._client.write(token, merged, revision=revision))

    def _permitted(self, operation: Callable[[Masked], Result]) -> Result:
        token = self._token.current()
        refusal: KeyStoreForbiddenError | None = None
        try:
            result = operation(token)
        except KeyStoreForbiddenError as error:
            refusal = error
        if refusal is not None:  # out here so that what follows is not chained to the refusal
            result = operation(self._token.after_refusal(token, refusal))
        self._token.accepted()
        return result

    def _not_found(self, stored: Stored | None) -> KeysNotFoundError:
        what = "nothing is stored" if stored is None else f"there is no field {KEY}"
        place = self._client.place
        remedy = of_a_policy(place) or "run `voiceassist-db init-keys`, or correct VOICEASSIST_DB_VAULT_PATH"
        return KeysNotFoundError(f"{what} at {place} in Vault at {place.address}: {remedy}")
