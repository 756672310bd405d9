"""Names of the parameters of one table's statements.

Values, plaintexts, tokens and lookup keys travel beside encryption keys and key versions in one set of parameters. So a name
is the kind of the value and the position of its column, never the column's own name: no column can be called so that its
value takes the place of another parameter, or a key is written into it.
"""

from __future__ import annotations

from sqlalchemy import Table


class Parameters:
    """The names for one table.

    Args:
        table: The table.
    """

    def __init__(self, table: Table) -> None:
        self._positions = {column.name: position for position, column in enumerate(table.c)}

    def plain(self, column: str) -> str:
        """Return the name for a value that is stored as it is, a primary key's included."""
        return f"plain_{self._positions[column]}"

    def plaintext(self, column: str) -> str:
        """Return the name for the plaintext of an encrypted column."""
        return f"plaintext_{self._positions[column]}"

    def token(self, column: str) -> str:
        """Return the name for a blind-index token."""
        return f"token_{self._positions[column]}"

    def where(self, column: str) -> str:
        """Return the name for a value that says which row is meant."""
        return f"where_{self._positions[column]}"

    def after(self, column: str) -> str:
        """Return the name for a primary key's value after which a page begins."""
        return f"after_{self._positions[column]}"
