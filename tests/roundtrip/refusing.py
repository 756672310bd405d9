"""The steps that must fail: what a field, a key or a lookup refuses is a ValueError, nothing is written, and the transaction goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import text

from tests.roundtrip import oracle
from tests.roundtrip.keys import long_keys, refused_keys
from tests.roundtrip.searched import unsearchable
from tests.roundtrip.tables import Held, Row
from tests.roundtrip.trial import Trial, shown
from tests.roundtrip.values import refused
from voiceassist_db import Repository
from voiceassist_db.database import Repositories


def check_refusals(trial: Trial) -> None:
    """Give every operation what it must refuse."""
    for held in trial.held:
        for way, run in trial.each_way():
            with trial.told(f"refusals {way}", held):
                run(partial(_refuse, trial, held, way))


def _refuse(trial: Trial, held: Held, way: str, tx: Repositories) -> None:
    kept = tx.repository(held.rows)
    before = _digest(tx, held)
    _refuse_values(trial, kept, way, held)
    _refuse_keys(trial, kept, way, held)
    assert before == _digest(tx, held), "a refused value was written"


def _refuse_values(trial: Trial, kept: Repository[Any], way: str, held: Held) -> None:
    there = trial.chance.choice(list(held.held.values()))
    first, second, third = (held.record(each) for each in trial.new(held, 3))
    turn = trial.chance.randrange(trial.stride)
    for name, field in held.fields.items():
        values = refused(field.kind.value) if field.normaliser is None else list(unsearchable(field.normaliser))
        for group, value in values:
            what = f"{name}, {group}: {shown(value)}"
            bad = held.record(trial.new(held, 1)[0], **{name: value})
            calls: list[tuple[str, Callable[[], object]]] = [
                ("add", partial(kept.add, bad)),
                ("add_many", partial(kept.add_many, [first, second, bad, third])),
                ("update", partial(kept.update, *held.arguments(there), **{name: value})),
            ]
            turn += 1
            chosen = calls if trial.stride == 1 else calls[turn % trial.stride : turn % trial.stride + 1]
            for operation, call in chosen:
                _must_refuse(f"{operation} of {what}", call)
            trial.counts[f"refused {way}", f"{field.kind.value}: {group}"] += 1


def _refuse_keys(trial: Trial, kept: Repository[Any], way: str, held: Held) -> None:
    types = tuple(held.shape.key.values())
    for key in (*refused_keys(types), *long_keys(types, held.shape.most_bytes)):
        bad = held.record(Row(key, held.new({}).code, trial.pool.cells(held.fields)))
        _must_refuse(f"add of the key {shown(key)}", kept.add, bad)
        _must_refuse(f"add_many of the key {shown(key)}", kept.add_many, [bad])
        trial.counts[f"refused {way}", "key"] += 1
    name = next(iter(held.fields))
    for key in refused_keys(types if held.shape.lookup is None else (held.shape.lookup,)):
        _must_refuse(f"get of {shown(key)}", kept.get, *key)
        _must_refuse(f"get_many of {shown(key)}", kept.get_many, [key])
        _must_refuse(f"update of {shown(key)}", kept.update, *key, **{name: None})
        _must_refuse(f"delete of {shown(key)}", kept.delete, *key)
        trial.counts[f"refused {way}", "lookup key"] += 1


def _digest(tx: Repositories, held: Held) -> Any:
    return tx.session.execute(text(oracle.digest(held.shape.name))).one()


def _must_refuse(what: str, call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    try:
        call(*arguments, **options)
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} in place of ValueError: {error}") from error
    raise AssertionError(f"{what} was accepted")
