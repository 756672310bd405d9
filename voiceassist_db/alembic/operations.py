"""The operations of migrations: an encrypted column with all that it needs, and back.

Owns what they are called and how they are written: with plain names and words, no key, and nothing that an application would have to
import. Each has its reverse. Executes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Self

from alembic.operations import Operations, ops
from sqlalchemy import Column, LargeBinary

from voiceassist_db.models import Kind
from voiceassist_db.models.names import require_context

_WITH: Final = "postgresql_with"


class AddEncryptedColumnOp(ops.MigrateOperation):
    """Add an encrypted column with its comment, its CHECK and its storage."""

    def __init__(
        self,
        table_name: str,
        column_name: str,
        kind: str,
        *,
        context: str,
        nullable: bool = True,
        schema: str | None = None,
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.kind = Kind(kind)
        self.context = require_context(context)
        self.nullable = nullable
        self.schema = schema

    @classmethod
    def add_encrypted_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        kind: str,
        *,
        context: str,
        nullable: bool = True,
        schema: str | None = None,
    ) -> None:
        """Add an encrypted column.

        Args:
            operations: Alembic's.
            table_name: Name of the table.
            column_name: Name of the column, which ends in ``_encrypted``.
            kind: Type of the values, such as ``text``.
            context: What the values are bound to, such as ``patients.ssn``.
            nullable: Whether a row may lack the value.
            schema: The table's schema.
        """
        operations.invoke(cls(table_name, column_name, kind, context=context, nullable=nullable, schema=schema))

    @classmethod
    def drop_encrypted_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        schema: str | None = None,
    ) -> None:
        """Drop an encrypted column. One that holds values is dropped only with ``alembic -x drop-encrypted-data``."""
        operations.invoke(DropEncryptedColumnOp(table_name, column_name, schema=schema))

    def reverse(self) -> DropEncryptedColumnOp:
        """Return the operation that drops it."""
        return DropEncryptedColumnOp(self.table_name, self.column_name, schema=self.schema, added=self)

    def to_column(self) -> Column[Any]:
        """Return the column, with its comment."""
        comment = f"encrypted {self.context} as {self.kind}"
        return Column(self.column_name, LargeBinary(), nullable=self.nullable, comment=comment)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what Alembic prints of it."""
        return "add_encrypted_column", self.schema, self.table_name, self.column_name

    def rendered(self) -> str:
        """Return its call in a migration."""
        told = f"{self.table_name!r}, {self.column_name!r}, {str(self.kind)!r}, context={self.context!r}"
        return f"add_encrypted_column({told}{'' if self.nullable else ', nullable=False'}{_schema(self.schema)})"


class DropEncryptedColumnOp(ops.MigrateOperation):
    """Drop an encrypted column, or one without which nobody could open the values of others."""

    def __init__(
        self,
        table_name: str,
        column_name: str,
        *,
        schema: str | None = None,
        added: AddEncryptedColumnOp | ops.AddColumnOp | None = None,
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.schema = schema
        self._added = added

    def reverse(self) -> AddEncryptedColumnOp | ops.AddColumnOp:
        """Return the operation that adds it again, without its values."""
        assert self._added is not None
        return self._added

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what Alembic prints of it."""
        return "drop_encrypted_column", self.schema, self.table_name, self.column_name

    def rendered(self) -> str:
        """Return its call in a migration."""
        return f"drop_encrypted_column({self.table_name!r}, {self.column_name!r}{_schema(self.schema)})"


class CompleteEncryptedTableOp(ops.MigrateOperation):
    """Give a table what its encrypted columns need, and a plain ``add_column`` or ``create_table`` does not give."""

    is_reversed = False

    def __init__(
        self,
        table_name: str,
        *,
        checks: Sequence[str] = (),
        versions: Sequence[str] = (),
        external: Sequence[str] = (),
        fillfactor: int | None = None,
        schema: str | None = None,
    ) -> None:
        self.table_name = table_name
        self.checks = tuple(checks)
        self.versions = tuple(versions)
        self.external = tuple(external)
        self.fillfactor = fillfactor
        self.schema = schema

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.checks or self.versions or self.external or self.fillfactor)

    @classmethod
    def complete_encrypted_table(
        cls,
        operations: Operations,
        table_name: str,
        *,
        checks: Sequence[str] = (),
        versions: Sequence[str] = (),
        external: Sequence[str] = (),
        fillfactor: int | None = None,
        schema: str | None = None,
    ) -> None:
        """Give a table what its encrypted columns need.

        Args:
            operations: Alembic's.
            table_name: Name of the table.
            checks: Columns that get the CHECK of their format. It is proven over all rows.
            versions: Columns that get the CHECK that a value has a key version, where rows may lack one (``EncryptedInPlace``).
            external: Columns whose values are stored as they are, since ciphertext does not compress.
            fillfactor: Percent of a page that inserts fill. The rest is room for the row versions of a rotation.
            schema: The table's schema.
        """
        operations.invoke(
            cls(table_name, checks=checks, versions=versions, external=external, fillfactor=fillfactor, schema=schema)
        )

    @classmethod
    def strip_encrypted_table(
        cls,
        operations: Operations,
        table_name: str,
        *,
        checks: Sequence[str] = (),
        versions: Sequence[str] = (),
        external: Sequence[str] = (),
        fillfactor: int | None = None,
        schema: str | None = None,
    ) -> None:
        """Take back what ``complete_encrypted_table`` gave with the same arguments."""
        stripped = cls(
            table_name, checks=checks, versions=versions, external=external, fillfactor=fillfactor, schema=schema
        )
        operations.invoke(stripped.reverse())

    def reverse(self) -> CompleteEncryptedTableOp:
        """Return the operation that takes it back."""
        kind = CompleteEncryptedTableOp if self.is_reversed else StripEncryptedTableOp
        return kind(
            self.table_name,
            checks=self.checks,
            versions=self.versions,
            external=self.external,
            fillfactor=self.fillfactor,
            schema=self.schema,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what Alembic prints of it."""
        name = "strip_encrypted_table" if self.is_reversed else "complete_encrypted_table"
        return name, self.schema, self.table_name, self.checks, self.versions, self.external, self.fillfactor

    def rendered(self) -> str:
        """Return its call in a migration."""
        told = repr(self.table_name)
        told += f", checks={list(self.checks)!r}" if self.checks else ""
        told += f", versions={list(self.versions)!r}" if self.versions else ""
        told += f", external={list(self.external)!r}" if self.external else ""
        told += f", fillfactor={self.fillfactor}" if self.fillfactor else ""
        return f"{self.to_diff_tuple()[0]}({told}{_schema(self.schema)})"


class StripEncryptedTableOp(CompleteEncryptedTableOp):
    """Take that back."""

    is_reversed = True


class ModifyEncryptedTableOps(ops.ModifyTableOps):
    """Changes of one table, in this order: a batch of Alembic's would put its own behind those that it does not know."""

    def reverse(self) -> ModifyEncryptedTableOps:
        """Return the changes that take these back."""
        changes = ops.ModifyTableOps.reverse(self)
        return ModifyEncryptedTableOps(self.table_name, changes.ops, schema=self.schema)


class CreateEncryptedTableOp(ops.CreateTableOp):
    """Create a table with encrypted columns: Alembic's own operation, and one for what it leaves out."""

    completion: CompleteEncryptedTableOp

    @classmethod
    def of(cls, made: ops.CreateTableOp, completion: CompleteEncryptedTableOp) -> Self:
        """Make it of Alembic's own operation.

        The fillfactor is in the completion alone: SQLAlchemy 2.0 refuses ``postgresql_with`` of a table, and a migration that was written
        under 2.1 must run there, too.
        """
        new = cls.__new__(cls)
        new.__dict__.update(made.__dict__)
        new.kw = {name: value for name, value in made.kw.items() if name != _WITH}
        storage = {
            name: value for name, value in (made.kw.get(_WITH) or {}).items() if str(name).lower() != "fillfactor"
        }
        if storage:
            new.kw[_WITH] = storage
        new.completion = completion
        return new

    def reverse(self) -> DropEncryptedTableOp:
        """Return the operation that drops it."""
        return DropEncryptedTableOp.of(ops.CreateTableOp.reverse(self), self.completion)


class DropEncryptedTableOp(ops.DropTableOp):
    """Drop a table with encrypted columns."""

    completion: CompleteEncryptedTableOp | None = None

    @classmethod
    def drop_encrypted_table(cls, operations: Operations, table_name: str, *, schema: str | None = None) -> None:
        """Drop a table with encrypted columns. One that holds rows is dropped only with ``alembic -x drop-encrypted-data``."""
        operations.invoke(cls(table_name, schema=schema))

    @classmethod
    def of(cls, dropped: ops.DropTableOp, completion: CompleteEncryptedTableOp) -> Self:
        """Make it of Alembic's own operation."""
        new = cls.__new__(cls)
        new.__dict__.update(dropped.__dict__)
        new.completion = completion
        return new

    def reverse(self) -> CreateEncryptedTableOp:
        """Return the operation that creates it again, without its rows."""
        assert self.completion is not None
        return CreateEncryptedTableOp.of(ops.DropTableOp.reverse(self), self.completion)

    def rendered(self) -> str:
        """Return its call in a migration."""
        return f"drop_encrypted_table({self.table_name!r}{_schema(self.schema)})"


def _schema(schema: str | None) -> str:
    return "" if schema is None else f", schema={str(schema)!r}"
