"""What stands around the work of each command: its waits are told, and tables that are not found are looked for elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from voiceassist_db.cli.output import say
from voiceassist_db.errors import ConfigurationError, SchemaNotMigratedError

if TYPE_CHECKING:
    from sqlalchemy import Engine

_UNDEFINED_TABLE: Final = "42P01"


@contextmanager
def attended(engine: Engine) -> Iterator[None]:
    """Print each wait of an engine's statements to standard error, and say where tables are that the search path does not reach.

    Raises:
        ConfigurationError: A table is not found, because the tables are in a schema that this role's search path lacks.
    """
    from voiceassist_db.catalogue import misplaced
    from voiceassist_db.execution import translated
    from voiceassist_db.waits import watching

    try:
        with watching(engine, lambda wait: say(wait, err=True)):
            yield
    except SchemaNotMigratedError as error:
        if error.sqlstate != _UNDEFINED_TABLE:
            raise
        with translated(), engine.connect() as connection:
            problem = misplaced(connection)
        if problem is None:
            raise
        raise ConfigurationError(problem) from None


def say_skipped(engine: Engine) -> None:
    """Print to standard error which tables no command touches, because of their owners."""
    from voiceassist_db.catalogue import foreign_tables
    from voiceassist_db.execution import translated

    with translated(), engine.connect() as connection:
        for each in foreign_tables(connection):
            say(f"skipped: {each.table} {each.problem}", err=True)
