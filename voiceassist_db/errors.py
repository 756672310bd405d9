"""Every exception that this package raises for a failure that its caller can act on.

Owns the hierarchy and the wording rule: a message names tables, fields, row ids, key versions and the next step. It never
holds a plaintext, a ciphertext or a key. Bad arguments are ordinary ``ValueError``s and have no class here.

Names and ids in a message may hold anything. ``str`` of every error here is safe to log and to print: what cannot be seen is
escaped. Attributes such as ``row_id`` hold the exact text.
"""

from __future__ import annotations

from typing import Any, ClassVar

from voiceassist_db.escaping import escaped


class VoiceAssistDBError(Exception):
    """Root of every error of this package."""

    _kept_characters: ClassVar[str] = ""
    """What ``str`` leaves as it is: a line break, in the errors whose message has several lines."""

    def __str__(self) -> str:
        return escaped(super().__str__(), keep=self._kept_characters)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would call a subclass without its keyword-only arguments when it comes back from another process.
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[VoiceAssistDBError], args: tuple[Any, ...], fields: dict[str, Any]) -> VoiceAssistDBError:
    error = kind.__new__(kind, *args)
    vars(error).update(fields)
    return error


class ConfigurationError(VoiceAssistDBError):
    """A setting is missing, malformed or contradicts another one."""


# --- The key store -------------------------------------------------------------------------------------------------------


class KeyStoreError(VoiceAssistDBError):
    """Keys could not be fetched from, or written to, the key store."""


class KeyStoreUnavailableError(KeyStoreError):
    """The key store did not answer: down, hung, or unreachable on the network."""


class KeyStoreSealedError(KeyStoreError):
    """The key store answers, but is sealed or was never initialised."""


class KeyStoreTLSError(KeyStoreError):
    """The key store's certificate was not trusted, or the TLS handshake failed."""


class KeyStoreAuthenticationError(KeyStoreError):
    """The login was refused, or the token is wrong, expired or revoked."""


class KeyStoreForbiddenError(KeyStoreError):
    """The login works, but its policy does not permit this path."""


class KeysNotFoundError(KeyStoreError):
    """Nothing was ever stored at the path, or the mount does not exist."""


class KeysDeletedError(KeyStoreError):
    """The secret was stored once, and its newest version has been deleted or destroyed."""


class KeyStoreConflictError(KeyStoreError):
    """Somebody else wrote the secret first: the check-and-set did not match, and nothing was written."""


class MalformedKeyError(KeyStoreError):
    """A stored key, or a key version, is not of the form that this package accepts."""


# --- Keys and the rows that they open --------------------------------------------------------------------------------------


class WrongKeyError(VoiceAssistDBError):
    """The key for a version is not the key that this database was encrypted with."""

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class KeyNotRegisteredError(VoiceAssistDBError):
    """The database has no record of the key version: ``encryption_keys`` lacks its row."""

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class MissingKeyError(VoiceAssistDBError):
    """An encrypted statement was executed without a key."""


class RowError(VoiceAssistDBError):
    """A failure of one value, or of the rows of one statement.

    Attributes:
        table: Name of the table.
        field: Name of the field, without ``_encrypted``; None where the statement touched several.
        row_id: Primary key of the row as text; None where the statement touched several.
        sqlstate: PostgreSQL's five-character code; None where the server did not refuse it.
    """

    def __init__(
        self,
        message: str,
        *,
        table: str,
        field: str | None = None,
        row_id: str | None = None,
        sqlstate: str | None = None,
    ) -> None:
        super().__init__(message)
        self.table = table
        self.field = field
        self.row_id = row_id
        self.sqlstate = sqlstate


class UnknownKeyVersionError(RowError):
    """A row is under a key version that the key store does not hold."""

    def __init__(self, message: str, *, version: int, table: str, row_id: str | None = None) -> None:
        super().__init__(message, table=table, row_id=row_id)
        self.version = version


class DecryptionError(RowError):
    """A stored value does not open: it was damaged, or it was written under another key."""


class BindingError(RowError):
    """A value opens, but was encrypted for another row or column: somebody moved it."""


class ValueFormatError(RowError):
    """A value opens and is in its place, but is not of the field's type."""


class TriggerError(RowError):
    """A trigger stored something else than was written, or skipped the row. Nothing was written."""


class PrimaryKeyChangedError(TriggerError):
    """A trigger stored a row under another primary key than its values are bound to. Nothing was written."""


class WrongRowError(RowError):
    """The server answered with a row that was not asked for: somebody else uses the same connection. Nothing was returned."""


class NotFoundError(RowError):
    """No row has this key."""


class DuplicateError(RowError):
    """Another row has the same value where each may stand only once."""


class FieldNotLoadedError(VoiceAssistDBError):
    """A record was read without this field."""


# --- The database ----------------------------------------------------------------------------------------------------------


class DatabaseError(VoiceAssistDBError):
    """The database refused or failed a statement.

    Attributes:
        sqlstate: PostgreSQL's five-character code; None where the server never answered.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailableError(DatabaseError):
    """The database cannot be reached, refused the login, or the connection was lost."""


class UnsafeConnectionError(VoiceAssistDBError):
    """A key, or a patient's value, was not sent, for the connection or the server's settings would let others see it."""

    _kept_characters = "\n"


class PgcryptoMissingError(DatabaseError):
    """The extension pgcrypto is not installed in the schema ``pgcrypto``, or may not be used by this role."""


class MigrationError(DatabaseError):
    """A migration needs something that its role cannot do; the message has the statements to run."""

    _kept_characters = "\n"


class SchemaNotMigratedError(DatabaseError):
    """A table or a column that this version needs does not exist."""


class ConstraintError(DatabaseError):
    """A constraint refused the row.

    Attributes:
        constraint: Name of the constraint, or of the column that may not be NULL.
    """

    def __init__(self, message: str, *, constraint: str | None, sqlstate: str | None = None) -> None:
        super().__init__(message, sqlstate=sqlstate)
        self.constraint = constraint


class TransactionConflictError(DatabaseError):
    """A deadlock, a lock or statement timeout, or a serialisation failure: the transaction may be tried again."""


class TransactionFailedError(DatabaseError):
    """A statement of the transaction failed before, so that PostgreSQL would answer its COMMIT by rolling back."""


# --- Tools -----------------------------------------------------------------------------------------------------------------


class EmbeddedServerError(VoiceAssistDBError):
    """An embedded PostgreSQL or OpenBao could not be found or started."""

    _kept_characters = "\n"


class ProvisioningError(VoiceAssistDBError):
    """Roles cannot be given what they need, and no more."""


class ImportFileError(VoiceAssistDBError):
    """A file as a whole cannot be imported: it is unreadable, or its columns are not recognised."""


class RotationError(VoiceAssistDBError):
    """A key rotation was refused, or could not be finished."""


class RotationActiveError(RotationError):
    """Another process is rotating this database's keys."""


class NothingToDoError(RotationError):
    """There is no unfinished rotation to continue, or no key to retire."""


class LeaseLostError(RotationError):
    """Another process took this rotation over, after this one was silent for too long; this one writes nothing more."""
