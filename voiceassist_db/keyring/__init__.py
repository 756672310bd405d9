"""The keys that a process may use now: what the key store holds, proven against what the database has registered."""

from voiceassist_db.keyring.keyring import Keyring, KeyVersion
from voiceassist_db.keyring.listing import forget
from voiceassist_db.keyring.members import Here, Member
from voiceassist_db.keyring.observation import (
    IS_OPEN,
    OPEN,
    explained,
    fetched,
    index_restoring,
    index_state,
    observe,
    open_runs,
    refused,
    without_version,
)
from voiceassist_db.keyring.registry import (
    RegisteredKey,
    assemble,
    register,
    registered_keys,
    retire_index_keys,
    retire_version,
    take_back,
)
from voiceassist_db.keyring.single_flight import REFUSALS
from voiceassist_db.keyring.source import DEFAULT_TTL_S, KeyringSource

__all__ = [
    "DEFAULT_TTL_S",
    "IS_OPEN",
    "OPEN",
    "REFUSALS",
    "Here",
    "KeyVersion",
    "Keyring",
    "KeyringSource",
    "Member",
    "RegisteredKey",
    "assemble",
    "explained",
    "fetched",
    "forget",
    "index_restoring",
    "index_state",
    "observe",
    "open_runs",
    "refused",
    "register",
    "registered_keys",
    "retire_index_keys",
    "retire_version",
    "take_back",
    "without_version",
]
