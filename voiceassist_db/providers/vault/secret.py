"""The fields of the secret: seven are ours, and the others belong to somebody else and survive every write.

Owns their names and forms. Knows no network.
"""

from __future__ import annotations

import json
import re
from typing import Final

from voiceassist_db.errors import MalformedKeyError
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.providers.vault.answers import RawSecret

KEY: Final = "key"
KEY_VERSION: Final = "key_version"
PREVIOUS_KEY: Final = "previous_key"
PREVIOUS_KEY_VERSION: Final = "previous_key_version"
INDEX_KEY: Final = "index_key"
PREVIOUS_INDEX_KEY: Final = "previous_index_key"
DATABASES: Final = "databases"

_VERSION: Final = re.compile(r"[0-9]{1,9}")


def key_set(fields: RawSecret, *, revision: int, where: str) -> KeySet:
    """Read the keys from a secret that has the field ``key``.

    Args:
        fields: The secret.
        revision: KV's version of the secret, for check-and-set.
        where: The secret's mount and path, for the error message.

    Raises:
        MalformedKeyError: A field is not of its form, or fields contradict one another.
    """
    try:
        return _parse(fields, revision)
    except MalformedKeyError as error:
        message = f"in {where}, {error}"
    # Raised out here as a new error: the first one's traceback leads to frames that hold the text of the field.
    raise MalformedKeyError(message)


def with_keys(fields: RawSecret, keys: KeySet) -> RawSecret:
    """Return the fields with these keys for those that were there; versions as strings, as `vault kv put` does."""
    merged = RawSecret(dict(fields.expose()))
    ours = {
        KEY: keys.key,
        KEY_VERSION: keys.version,
        PREVIOUS_KEY: keys.previous_key,
        PREVIOUS_KEY_VERSION: keys.previous_version,
        INDEX_KEY: keys.index_key,
        PREVIOUS_INDEX_KEY: keys.previous_index_key,
    }
    for name, value in ours.items():
        if value is None:
            merged.expose().pop(name, None)
        else:
            merged.expose()[name] = value.expose().decode("ascii") if isinstance(value, Key) else str(value)
    if keys.databases:
        merged.expose()[DATABASES] = keys.databases
    return merged


def _parse(fields: RawSecret, revision: int) -> KeySet:
    version, key = _version(fields, KEY_VERSION), _key(fields, KEY)
    if key is None:
        raise MalformedKeyError(f"{KEY} is missing")
    index_key, previous_index_key = _key(fields, INDEX_KEY), _key(fields, PREVIOUS_INDEX_KEY)
    if index_key is None and previous_index_key is not None:
        raise MalformedKeyError(f"{PREVIOUS_INDEX_KEY} stands without {INDEX_KEY}")
    return KeySet(
        # `vault kv put secret/voiceassist/encryption key=…` leaves no version: it is the first.
        version=1 if version is None else version,
        key=key,
        previous_version=_version(fields, PREVIOUS_KEY_VERSION),
        previous_key=_key(fields, PREVIOUS_KEY),
        index_key=index_key,
        previous_index_key=previous_index_key,
        revision=revision,
        databases=_text(fields, DATABASES),
    )


def _text(fields: RawSecret, name: str) -> str:
    """Return a field as text: it is read by those who need it, so that a mistake in it hinders no reader of the keys."""
    value = fields[name] if name in fields else ""  # noqa: SIM401  # a RawSecret has no get
    return value if isinstance(value, str) else json.dumps(value)


def _key(fields: RawSecret, name: str) -> Key | None:
    if name not in fields:
        return None
    if not isinstance(fields[name], str):
        raise MalformedKeyError(f"{name} is not a string")
    return Key.from_base64(fields[name], name=name)


def _version(fields: RawSecret, name: str) -> int | None:
    if name not in fields:
        return None
    text = str(fields[name]).strip()  # of all JSON values, only a number and a string come out as digits
    if not _VERSION.fullmatch(text):
        raise MalformedKeyError(f"{name} is not a number of at most 9 digits")
    return int(text)
