"""What is wrong with rows that were read: values of another place, type or format, and tokens that are missing or another value's.

Owns the judgement of each row; the walk over the tables is ``verification``'s. Executes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from voiceassist_db import normalisers
from voiceassist_db.blind_index import token
from voiceassist_db.commands import ROTATE_INDEX
from voiceassist_db.errors import BindingError, ValueFormatError
from voiceassist_db.keyring import Keyring
from voiceassist_db.keys import Scheme
from voiceassist_db.models import BlindIndex, EncryptedField, packets
from voiceassist_db.pgcrypto import codec

_BOUND: Final = Scheme.BOUND

UNINDEXED: Final = (
    "has no blind index: no search finds it, and another row may have the same value where each may stand only once. Write it again with "
    f"update(), or run `{ROTATE_INDEX}`"
)


UNCHECKED: Final = "has tokens that were not checked: they are made by {missing}"


class Findings(Protocol):
    """What is counted; ``verification.TableReport`` is one."""

    rows: int
    values: int
    unindexed: int

    def fail(self, row_id: str, name: str | None, problem: str) -> None: ...  # noqa: D102


class Examination:
    """Looks at rows: primary key, version, and for each field its plaintext, formats and token.

    Args:
        report: Where findings are counted.
        width: How many columns the primary key has.
        fields: The fields that are selected.
        decoders: What decodes each field.
        keyring: The keys that they were decrypted with.
        needs_tokens: Whether every searchable value must have a token; else rows that were adopted may lack it.
        is_last: Whether a row under a version that the keyring lacks is a failure, and not a reason to ask the key store.
        is_in_place: Whether rows without values have no version.
    """

    def __init__(
        self,
        report: Findings,
        width: int,
        fields: tuple[EncryptedField, ...],
        decoders: Mapping[str, codec.Decoder],
        keyring: Keyring,
        *,
        needs_tokens: bool,
        is_last: bool,
        is_in_place: bool,
    ) -> None:
        self.report = report
        self._width = width
        self._needs_tokens = needs_tokens
        self._fields = []
        position = self._width + 1
        for each in fields:
            indexes = [
                (index, at)
                for at, index in enumerate(each.indexes, position + 3)
                if normalisers.is_known(index.normaliser)  # else the table as a whole has failed
            ]
            self._fields.append((each, decoders[each.name], position, indexes, len(each.indexes)))
            position += 3 + len(each.indexes)
        self._keyring = keyring
        self._is_last = is_last
        self._is_in_place = is_in_place

    def examine(self, rows: Iterable[tuple[Any, ...]]) -> int | None:
        """Look at rows; return the version of the first that the keyring lacks, where looking has stopped, or None."""
        for row in rows:
            version = row[self._width]
            # Without a version no value opens, so there is none here.
            scheme = _BOUND if version is None and self._is_in_place else self._keyring.scheme(version)
            if scheme is None and not self._is_last:
                unknown: int = version
                return unknown
            self.report.rows += 1
            row_id = codec.row_id(row[: self._width])
            if scheme is None:
                self.report.fail(row_id, None, f"is under key version {version}, which the key store does not hold")
            else:
                self._examine_values(row, row_id, scheme)
        return None

    def _examine_values(self, row: tuple[Any, ...], row_id: str, scheme: Scheme) -> None:
        for each, decode, position, indexes, count in self._fields:
            plaintext, is_bound, weak, *stored = row[position : position + 3 + count]
            if plaintext is None:
                if any(token is not None for token in stored):
                    self.report.fail(row_id, each.name, "has a blind index, but no value")
                continue
            self.report.values += 1
            if scheme is _BOUND and not is_bound:
                self.report.fail(row_id, each.name, "is not in the format of scheme bound")
                continue
            if scheme is not _BOUND and weak is not None:
                self.report.fail(row_id, each.name, packets.described(weak))
                continue
            try:
                value = decode(scheme, row_id, plaintext)
            except BindingError:
                self.report.fail(row_id, each.name, "was encrypted for another row or column")
            except ValueFormatError:
                self.report.fail(row_id, each.name, f"is not of type {each.kind.value}")
            else:
                self._examine_tokens(row_id, each.name, value, [(index, row[at]) for index, at in indexes])

    def _examine_tokens(
        self, row_id: str, name: str, value: Any, tokens: Iterable[tuple[BlindIndex, bytes | None]]
    ) -> None:
        """Look at a value's tokens; a value with several of them fails once."""
        problems = [self._problem_with(index, value, stored) for index, stored in tokens]
        problem = max(filter(None, problems), key=lambda each: each != UNINDEXED, default=None)
        if problem == UNINDEXED and not self._needs_tokens:
            self.report.unindexed += 1
        elif problem:
            self.report.fail(row_id, name, problem)

    def _problem_with(self, index: BlindIndex, value: Any, stored: bytes | None) -> str | None:
        if stored is None:
            return UNINDEXED
        try:
            normalised = normalisers.form_of(index.normaliser)(value)
        except ValueError:
            return "has a blind index, but a value that cannot be searched"
        if all(stored != token(key, normalised) for key in self._keyring.index_column_keys(index.info)):
            return "has the blind index of another value"
        return None
