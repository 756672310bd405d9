"""The keys that may be used at one moment. Immutable, and knows neither database nor key store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from voiceassist_db.errors import MissingKeyError
from voiceassist_db.keys import Key, Scheme


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One live version of the encryption key."""

    version: int
    scheme: Scheme
    key: Key


@dataclass(frozen=True, slots=True, eq=False)
class Keyring:
    """The live keys of one moment. Immutable: a statement takes all its keys and versions from one keyring.

    Attributes:
        current: The version that new rows are written under.
        previous: The version before it, while rows may still be under it.
        index_keys: Roots of the blind-index keys, the one to write with first; empty where the store holds none.
        index_checks: Their check values, by which the registry knows them.
        memory: What others derived from this keyring and wish to keep as long as it lives.
        schemes: Scheme by slot; where there is no previous version, its slot has the current one's.
        has_direct: Whether rows of scheme ``direct`` may be read, which were written with any options.
    """

    current: KeyVersion
    previous: KeyVersion | None = None
    index_keys: tuple[Key, ...] = ()
    index_checks: tuple[bytes, ...] = ()
    memory: dict[object, dict[str, Any]] = field(default_factory=dict, repr=False)
    schemes: Mapping[str, Scheme] = field(init=False, repr=False)
    has_direct: bool = field(init=False, repr=False)
    _column_keys: dict[tuple[int, str], Key] = field(default_factory=dict, repr=False)
    _index_column_keys: dict[str, tuple[Key, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        schemes = {"current": self.current.scheme, "previous": (self.previous or self.current).scheme}
        object.__setattr__(self, "schemes", MappingProxyType(schemes))
        object.__setattr__(self, "has_direct", Scheme.DIRECT in schemes.values())

    def scheme(self, version: int | None) -> Scheme | None:
        """Return the scheme of a live version; None where the version is not live, or there is none."""
        if version == self.current.version:
            return self.current.scheme
        if self.previous is not None and version == self.previous.version:
            return self.previous.scheme
        return None

    def column_key(self, version: KeyVersion, context: str) -> Key:
        """Return the key that one column is encrypted with under a version."""
        if version.scheme is Scheme.DIRECT:
            return version.key
        known = self._column_keys.get((version.version, context))
        if known is None:
            known = self._column_keys[version.version, context] = version.key.derive(context)
        return known

    def index_column_keys(self, context: str) -> tuple[Key, ...]:
        """Return the keys of one column's blind index, the one to write with first.

        Raises:
            MissingKeyError: The key store holds no index key.
        """
        if not self.index_keys:
            raise MissingKeyError(
                "the key store holds no index_key, without which nothing can be searched or kept unique: run "
                "`voiceassist-db init-keys`, which adds it beside the key"
            )
        known = self._index_column_keys.get(context)
        if known is None:
            known = self._index_column_keys[context] = tuple(key.derive(context) for key in self.index_keys)
        return known
