"""Key material in memory, and the narrow interface to wherever it is kept.

Owns :class:`Key`, :class:`KeySet` and the :class:`KeyProvider` protocol. Knows no database, no network and no environment.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, Self, runtime_checkable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from voiceassist_db.errors import MalformedKeyError
from voiceassist_db.masking import Opaque
from voiceassist_db.tracebacks import forgetful

KEY_BYTES: Final = 32
"""Length of a key: AES-256's, as ``openssl rand -base64 32`` makes it."""


class Key(Opaque):
    """A secret of 32 uniformly random bytes that shows itself nowhere.

    Every way to print, log, format, copy or pickle it yields a mask or an error. The two ways out are :meth:`expose`, which
    only the psycopg dumper and a key store's client call, and :meth:`mac`.
    """

    __slots__ = ("_exposed", "_hmac", "_raw")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise MalformedKeyError(f"a key is {KEY_BYTES} bytes, not {len(raw)}")
        self._raw = raw
        self._exposed = base64.b64encode(raw)
        self._hmac: HMAC | None = None

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the operating system's random source."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    @forgetful
    def from_base64(cls, text: str, *, name: str) -> Self:
        """Read a key as ``openssl rand -base64 32`` prints it: 44 characters, surrounding white space ignored.

        Args:
            text: The base64 text.
            name: What the key is called where it is kept, for the error message.

        Raises:
            MalformedKeyError: It is not the base64 form of exactly 32 bytes.
        """
        try:
            raw = base64.b64decode(text.strip().encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raw = b""
        if len(raw) != KEY_BYTES:
            raise MalformedKeyError(
                f"{name} is not a key: expected the base64 form of {KEY_BYTES} random bytes (44 characters), "
                "as `openssl rand -base64 32` prints it"
            )
        return cls(raw)

    def expose(self) -> bytes:
        """Return the key's base64 form, 44 ASCII bytes: what pgcrypto gets as its password, and Vault as its value."""
        return self._exposed

    def derive(self, info: str) -> Key:
        """Derive a key that cannot be turned back into this one: HKDF-SHA256 (RFC 5869), no salt.

        Args:
            info: The context that sets the derived key apart, ASCII, such as ``patient_data.ssn``.
        """
        return Key(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info.encode("ascii")).derive(self._raw))

    def mac(self, message: bytes) -> bytes:
        """Return HMAC-SHA256 (RFC 2104) of the message under this key, 32 bytes."""
        if self._hmac is None:
            self._hmac = HMAC(self._raw, SHA256())
        # A copy has the key in it already: a third of what the standard library takes for a message of twelve bytes.
        made = self._hmac.copy()
        made.update(message)
        return made.finalize()

    def check_value(self, statement: str) -> bytes:
        """Return the 32 bytes that prove a statement about this key; they tell nothing else, and are safe to store openly.

        Args:
            statement: What is said of the key, such as its version and scheme, ASCII. Whoever changes it in the database
                cannot make the check value that goes with it.
        """
        return self.derive(f"check_value:{statement}").mac(b"check_value")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._raw, other._raw)

    __hash__ = None  # type: ignore[assignment]  # a hash of a key is a fact about it, and nothing needs one


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """What a key store holds at one moment: one or two encryption keys and the blind index's.

    Attributes:
        version: Number of the newest encryption key, 1 or more.
        key: The newest encryption key.
        previous_version: Number of the key before it, while rows may still need it.
        previous_key: The key before it.
        index_key: Root of the blind indexes' keys; None in a secret that was made without one.
        previous_index_key: The one before it, during its rotation.
        revision: What the store compares in check-and-set; 0 where it has no such number.
        databases: The databases that use these keys, as ``keyring.members`` reads it; empty while nobody has said so, and None in a
            store that keeps no such list.
    """

    version: int
    key: Key
    previous_version: int | None = None
    previous_key: Key | None = None
    index_key: Key | None = None
    previous_index_key: Key | None = None
    revision: int = 0
    databases: str | None = None

    def __post_init__(self) -> None:
        if self.version < 1:
            raise MalformedKeyError(f"key_version must be 1 or more, not {self.version}")
        if (self.previous_key is None) != (self.previous_version is None):
            raise MalformedKeyError("previous_key and previous_key_version belong together: one of them is missing")
        if self.previous_version is not None and not 1 <= self.previous_version < self.version:
            raise MalformedKeyError(
                f"previous_key_version must be less than key_version: {self.previous_version} and {self.version}"
            )
        if self.previous_key is not None and self.previous_key == self.key:
            raise MalformedKeyError("key and previous_key are the same key: a rotation that changes nothing")

    @classmethod
    def generate(cls) -> Self:
        """Make the first keys of a new deployment, as version 1."""
        return cls(version=1, key=Key.generate(), index_key=Key.generate())

    def versions(self) -> dict[int, Key]:
        """Return the live encryption keys by version, newest first."""
        live = {self.version: self.key}
        if self.previous_version is not None and self.previous_key is not None:
            live[self.previous_version] = self.previous_key
        return live


class Scheme(StrEnum):
    """How a key version is used in SQL."""

    BOUND = "bound"
    """A key derived for each column; the plaintext begins with the column and the row that it belongs to."""

    DIRECT = "direct"
    """The key itself and the plain value: data written by a bare ``pgp_sym_encrypt(value, key)``."""


class KeyProvider(Protocol):
    """One key store: the only interface through which key material enters or leaves the process.

    Every method may raise :class:`~voiceassist_db.errors.KeyStoreError`. None may hold more than it needs to log in.
    """

    def fetch(self) -> KeySet:
        """Return the keys.

        Raises:
            KeysNotFoundError: There are none yet.
        """
        ...

    def create(self, keys: KeySet) -> None:
        """Store the first keys.

        Args:
            keys: The keys.

        Raises:
            KeyStoreConflictError: There are some already. Nothing was written.
        """
        ...

    def replace(self, old: KeySet, new: KeySet) -> None:
        """Store new keys in place of those that were fetched.

        Args:
            old: The keys as they were fetched.
            new: The keys to store.

        Raises:
            KeyStoreConflictError: The store no longer holds the revision of ``old``. Nothing was written.
        """
        ...


@runtime_checkable
class KeyHistory(Protocol):
    """A key store that keeps what it held before."""

    def earlier(self, revision: int) -> KeySet | None:
        """Read the keys of an earlier revision; None where it is deleted or held none."""
        ...

    def restoring(self, revision: int) -> str:
        """Return the command that brings an earlier revision back."""
        ...

    def adding(self, revision: int, field: str, version: int) -> str:
        """Return the command that adds a key of an earlier revision to the newest, as its previous key."""
        ...
