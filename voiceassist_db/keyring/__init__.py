"""The keys that a process may use now: what the key store holds, proven against what the database has registered."""

from voiceassist_db.keyring.initialisation import Initialised, initialise_keys
from voiceassist_db.keyring.keyring import Keyring, KeyVersion
from voiceassist_db.keyring.registry import (
    RegisteredKey,
    assemble,
    count_index_keys,
    register,
    registered_keys,
    retire_index_keys,
    retire_version,
)
from voiceassist_db.keyring.single_flight import REFUSALS
from voiceassist_db.keyring.source import DEFAULT_TTL_S, KeyringSource

__all__ = [
    "DEFAULT_TTL_S",
    "REFUSALS",
    "Initialised",
    "KeyVersion",
    "Keyring",
    "KeyringSource",
    "RegisteredKey",
    "assemble",
    "count_index_keys",
    "initialise_keys",
    "register",
    "registered_keys",
    "retire_index_keys",
    "retire_version",
]
