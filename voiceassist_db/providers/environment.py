"""Development keys from one environment variable's value; never for real patients.

Owns the loud warning. ``config`` reads the variable; this module only receives its value.
"""

from __future__ import annotations

import logging
from typing import NoReturn

from voiceassist_db.errors import KeyStoreError
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.masking import Opaque
from voiceassist_db.tracebacks import forgetful

logger = logging.getLogger(__name__)

VARIABLE = "ENCRYPTION_KEY"


class EnvironmentKeyProvider(Opaque):
    """Version 1 from ``ENCRYPTION_KEY``, and a blind-index key derived from it.

    An environment is readable by every process of the same user, is inherited by every child, and cannot be rotated online:
    so this provider warns whenever it is made, and refuses to write.

    Args:
        value: The key: base64 of 32 bytes.

    Raises:
        MalformedKeyError: It is no such key.
    """

    @forgetful
    def __init__(self, value: str) -> None:
        self._key = Key.from_base64(value, name=VARIABLE)
        logger.warning(
            "the encryption key comes from %s: for development only. Set VAULT_ADDR to take keys from Vault.", VARIABLE
        )

    def fetch(self) -> KeySet:
        """Return the key as version 1."""
        return KeySet(version=1, key=self._key, index_key=self._key.derive("index_key"))

    def create(self, keys: KeySet) -> NoReturn:
        """Refuse: an environment cannot be written."""
        raise self._read_only()

    def replace(self, old: KeySet, new: KeySet) -> NoReturn:
        """Refuse: an environment cannot be written."""
        raise self._read_only()

    @staticmethod
    def _read_only() -> KeyStoreError:
        return KeyStoreError(f"keys from {VARIABLE} cannot be created or rotated: keep them in Vault (set VAULT_ADDR)")
