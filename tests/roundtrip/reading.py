"""The steps that compare: what every way of reading gives, and what is stored, with what the oracle says."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from tests.roundtrip import oracle
from tests.roundtrip.oracle import BOUND, is_same
from tests.roundtrip.searched import respelled
from tests.roundtrip.tables import Held, Row
from tests.roundtrip.trial import Trial, Way, shown
from voiceassist_db.database import Repositories

CHUNK: Final = 500
"""Rows of one call of get_many."""


def check_stored(trial: Trial, after: str) -> None:
    """Compare what is stored."""
    for held in trial.held:
        with trial.told(f"stored after {after}", held):
            _check_stored(trial, f"stored after {after}", held)


def check(trial: Trial, after: str, share: float) -> None:
    """Compare what is stored, then every row by pages and by get_many, and by get and find rows of every class and a share of the rest."""
    for held in trial.held:
        with trial.told(f"stored after {after}", held):
            _check_stored(trial, f"stored after {after}", held)
        for way, run in trial.each_way():
            with trial.told(f"read {way} after {after}", held):
                _check_pages(trial, f"page {way}", held, run)
                _check_many(trial, f"get_many {way}", held, run)
                _check_one_by_one(trial, f"get {way}", held, run, share)
                _check_found(trial, f"find {way}", held, run, share)


def _check_row(
    trial: Trial, operation: str, held: Held, row: Row, record: Any, names: Iterable[str] | None = None
) -> None:
    key = [getattr(record, name) for name in held.shape.key]
    assert is_same(list(row.key), key), f"expected the key {row.key!r}, read {key!r}"
    assert held.shape.lookup is None or is_same(row.code, getattr(record, held.code)), "another lookup key"
    for name in names or held.fields:
        sample, actual = row.cells[name], getattr(record, name)
        assert is_same(sample.value, actual), (
            f"{operation}: {name} ({held.fields[name].kind.value}), {row.told(name)}: "
            f"expected {shown(sample.value)}, read {shown(actual)}"
        )
        trial.counts[operation, f"{held.fields[name].kind.value}: {sample.group}"] += 1


def _check_pages(trial: Trial, operation: str, held: Held, run: Way) -> None:
    def pages(tx: Repositories) -> list[Any]:
        kept = tx.repository(held.rows)
        found: list[Any] = []
        while page := kept.page(after=found[-1] if found else None, limit=trial.chance.choice((7, 150, 400, 1000))):
            found += page
        return found

    found = run(pages)
    assert len(found) == len(held.held), f"{operation}: {len(found)} rows in place of {len(held.held)}"
    for each in found:
        _check_row(trial, operation, held, held.row_of(each), each)


def _check_many(trial: Trial, operation: str, held: Held, run: Way) -> None:
    wanted = list(held.held)
    trial.chance.shuffle(wanted)
    for at in range(0, len(wanted), CHUNK):
        part = wanted[at : at + CHUNK]
        given = [held.given(held.held[key]) for key in part]
        found = run(partial(_many, held, given))
        assert found.keys() == set(part), f"{operation}: other rows than were asked for"
        for key, each in found.items():
            _check_row(trial, operation, held, held.held[key], each)


def _many(held: Held, keys: list[Any], tx: Repositories) -> dict[Any, Any]:
    return tx.repository(held.rows).get_many(keys)


def _check_one_by_one(trial: Trial, operation: str, held: Held, run: Way, share: float) -> None:
    special, others = _by_class(held)
    chosen = [*special, *trial.chance.sample(others, int(len(others) * share))]
    subsets = held.subsets()

    def get(tx: Repositories) -> list[tuple[Row, Any, Any]]:
        kept, read = tx.repository(held.rows), []
        for at, row in enumerate(chosen):
            names = subsets[at % len(subsets)] if at % 3 == 2 else None
            read.append((row, names, kept.get(*held.given(row), fields=names)))
        return read

    for row, names, record in run(get):
        _check_row(trial, operation, held, row, record, names)


def _by_class(held: Held) -> tuple[list[Row], list[Row]]:
    """Return rows that have all classes, and all special values, of every field among them; and the other rows."""
    seen: set[Any] = set()
    special: list[Row] = []
    others: list[Row] = []
    for row in held.held.values():
        # A special value is one object, wherever it stands.
        classes = {(name, each.group, id(each) if each.is_special else 0) for name, each in row.cells.items()}
        (others if classes <= seen else special).append(row)
        seen |= classes
    return special, others


def _check_found(trial: Trial, operation: str, held: Held, run: Way, share: float) -> None:
    for name, field in held.fields.items():
        if field.normaliser is None:
            continue
        keys_of: dict[str, set[Any]] = {}
        for key, row in held.held.items():
            form = row.cells[name].form
            if form is not None and name not in row.without_token:
                keys_of.setdefault(form, set()).add(key)
        chosen = trial.chance.sample(sorted(keys_of), min(len(keys_of), 8 + int(len(keys_of) * share)))
        spelled = [(form, respelled(field.normaliser, form, trial.chance)) for form in chosen]

        def find(tx: Repositories, name: str = name, spelled: list[tuple[str, str]] = spelled) -> list[Any]:
            kept = tx.repository(held.rows)
            return [(form, given, kept.find({name: given})) for form, given in spelled]

        for form, given, found in run(find):
            keys = [held.lookup_key(held.row_of(each)) for each in found]
            assert (len(keys), set(keys)) == (len(keys_of[form]), keys_of[form]), (
                f"{operation}: {name}: {form!r} as {given!r}"
            )
            for each in found:
                _check_row(trial, operation, held, held.row_of(each), each)


def _check_stored(trial: Trial, operation: str, held: Held) -> None:
    """Compare a table with the oracle's own plaintexts and tokens, opened by its own SQL and its own keys."""
    by_id = {row.key: row for row in held.held.values()}
    secret, seen = trial.secret(), 0
    columns, key = list(held.columns.values()), tuple(held.shape.key)
    with oracle.connect(trial.dsn) as connection:
        for id_, found in oracle.stored(connection, held.shape.name, key, columns, secret, trial.schemes):
            row, seen = by_id[id_], seen + 1
            for name, column in held.columns.items():
                sample, actual = row.cells[name], found.plaintexts[column.name]
                expected = held.plaintext(row, name, is_bound=trial.schemes[found.version] == BOUND)
                assert is_same(expected, actual), (
                    f"{name} ({column.kind}), {row.told(name)}: expected {shown(expected)}, stored {shown(actual)}"
                )
                if column.index:
                    form = None if name in row.without_token else sample.form
                    token = None if form is None else secret.token(column.context, form)
                    assert found.tokens[column.name] == token, f"the token of {name}, {row.told(name)}, {form!r}"
            trial.count(operation, held, row.cells)
    assert seen == len(by_id), f"{len(by_id) - seen} rows are under none of the versions {trial.schemes}"
