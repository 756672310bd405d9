"""A column may have any name: even that of a parameter of our own statements."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Database, Record, Repository, field, record, uuid7
from voiceassist_db.models import EncryptedRow, Kind, blind_index_column, encrypted_column
from voiceassist_db.prepared import Prepared
from voiceassist_db.repositories.criteria import Criteria
from voiceassist_db.repositories.ordering import Order
from voiceassist_db.repositories.statements import Statements
from voiceassist_db.rotation import rotate
from voiceassist_db.verification import verify

INTERNAL = (
    *("keys", "version_current", "version_previous", "tolerated_state", "index_check", "tokens", "known", "limit"),
    *("first", "end", "numbers", "pass_", "nap_share", "given", "stored", "always", "one", "oid", "key_0", "after_0"),
    *("where_0", "where_id", "after_id", "plain_0", "plain_1", "plaintext_30", "token_31", "ctid_", "reason_", "id_1"),
)
"""Names of parameters, labels and subqueries of our own statements."""


class TeamBase(DeclarativeBase):
    """A team's base."""


NamesRow: Any = type(
    "NamesRow",
    (EncryptedRow, TeamBase),
    {
        "__tablename__": "names",
        "__annotations__": {"id": Mapped[UUID], "reason_encrypted": Mapped[bytes | None]}
        | dict.fromkeys(INTERNAL, Mapped[str]),
        "id": mapped_column(primary_key=True),
        "reason_encrypted": encrypted_column(Kind.TEXT),
        "reason_index": blind_index_column("exact"),
    }
    | {name: mapped_column(sa.Text, unique=name in {"keys", "where_id"}) for name in INTERNAL},
)


Names: Any = record(
    type(
        "Names",
        (Record,),
        {
            "__annotations__": dict.fromkeys(INTERNAL, str) | {"reason": str, "id": UUID},
            "id": field(default_factory=uuid7),
        },
    )
)


class NamesRepository(Repository[Any]):
    model = NamesRow
    record = Names

    def find_by_reason(self, reason: str) -> list[Any]:
        """Return the records with a reason."""
        return self.find(reason=reason)


class ByKeys(NamesRepository):
    lookup: ClassVar[tuple[str, ...]] = ("keys",)


class ByWhere(NamesRepository):
    lookup: ClassVar[tuple[str, ...]] = ("where_id",)


def row(number: int) -> Any:
    """Make a record whose every value tells its column."""
    return Names(**{name: f"{name} of {number}" for name in INTERNAL}, reason=f"reason {number}")


@pytest.fixture
def named(database: Database) -> Database:
    """A database with the table."""
    with database.engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
    return database


@pytest.mark.parametrize("kind", [NamesRepository, ByKeys, ByWhere])
def test_a_column_named_like_a_parameter_keeps_its_own_value(named: Database, kind: type[NamesRepository]) -> None:
    """Neither a key nor a version nor another column's value is stored there, and the row that is meant is changed."""
    one, *others = rows = [row(number) for number in range(4)]
    with named.transaction() as tx:
        names = tx.repository(kind)
        names.add(one)
        names.add_many(others)
        for each in rows:
            key = getattr(each, names.lookup[0])
            assert names.get(key) == each
            assert names.get_many([key]) == {key: each}
        assert names.page() == rows
        assert names.page(after=one, limit=1) == others[:1]
        assert names.find_by_reason("reason 2") == [rows[2]]
        for name in ("keys", "limit", "where_0", "after_0"):
            column = getattr(NamesRow, name)
            assert names.select(column == f"{name} of 2", order_by=column) == [rows[2]]
            assert names.select(order_by=column.desc(), after=rows[2]) == [rows[1], rows[0]]
        changes = {name: f"changed {name}" for name in INTERNAL if name not in kind.lookup}
        names.update(getattr(rows[1], names.lookup[0]), reason="another", **changes)
    expected = {each.id: each for each in rows}
    expected[rows[1].id] = Names(
        **changes,
        **{name: getattr(rows[1], name) for name in kind.lookup if name != "id"},
        reason="another",
        id=rows[1].id,
    )
    rotate(named.engine, named.keys)
    assert all(report.failed == 0 and report.unindexed == 0 for report in verify(named.engine, named.keys))
    with named.transaction() as tx:
        names = tx.repository(kind)
        assert {each.id: each for each in names.page()} == expected
        names.delete(getattr(one, names.lookup[0]))
        assert len(names.page()) == 3


def test_no_name_of_a_column_is_the_name_of_a_parameter() -> None:
    """Every parameter of every statement of a table is named by its kind and a position, or is one of a few fixed names."""
    statements: Statements = NamesRepository._statements
    fields = tuple(statements.table.fields.values())
    schemes = {"current": "bound", "previous": "bound"}
    every: list[Prepared] = [
        statements.insert(),
        statements.insert_many(),
        statements.get(fields),
        statements.get_many(fields, for_update=False),
        statements.find(("reason_index",), fields),
        statements.taken("reason_index"),
        statements.page(fields, ("id",), after=True),
        statements.count(Criteria(statements.table, ())),
        *(
            statements.select(
                fields, Criteria(statements.table, ()), Order(statements.table, statements.plain, by), after
            )
            for by, after in ((None, None), ([NamesRow.keys, NamesRow.limit.desc()], ("a", "b", "c")))
        ),
        statements.update(frozenset({"reason", "keys"}), schemes),  # type: ignore[arg-type]
        statements.version(),
        statements.delete(),
    ]
    fixed = {
        "keys",
        "version_current",
        "version_previous",
        "tolerated_state",
        "index_check",
        "tokens",
        "known",
        "limit",
    }
    positions = {f"{kind}_{at}" for kind in ("plain", "plaintext", "token", "where", "after") for at in range(50)}
    for statement in every:
        assert statement.names <= fixed | positions
