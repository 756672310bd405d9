"""All the ways in which a program shows what it holds: to a log, a debugger, another process or a tool that reports errors."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import Engine
from sqlalchemy.engine.interfaces import Compiled

import voiceassist_db

_FRAMES: Final = (str(Path(voiceassist_db.__file__).parent), "site-packages")
"""Whose local variables count: the test's own hold the values, as any caller's do."""


def _attributes(error: BaseException) -> str:
    names = {*vars(error), *(name for name in dir(error) if not name.startswith("_"))}
    return repr({name: getattr(error, name, None) for name in names})


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and each not in seen:
            seen.append(each)
            todo += [each.__cause__, each.__context__]
    return iter(seen)


def _locals(error: BaseException) -> str:
    frames = [
        frame
        for each in _chain(error)
        for frame in traceback.StackSummary.extract(traceback.walk_tb(each.__traceback__), capture_locals=True)
        if any(part in frame.filename for part in _FRAMES)
    ]
    return "\n".join(f"{frame.name} {frame.locals}" for frame in frames)


OF_OBJECTS: Final[dict[str, Callable[[Any], Any]]] = {
    "repr": repr,
    "str": str,
    "format": lambda thing: f"{thing:}",
}
OF_KEYS: Final[dict[str, Callable[[Any], Any]]] = OF_OBJECTS | {
    "vars": vars,
    "asdict": dataclasses.asdict,
    "replace": dataclasses.replace,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "JSON": lambda thing: json.dumps(thing, default=lambda each: getattr(each, "__dict__", str(each))),
}
OF_ERRORS: Final[dict[str, Callable[[Any], Any]]] = {
    "str": str,
    "repr": repr,
    "args": lambda error: error.args,
    "attributes": _attributes,
    "causes and contexts": lambda error: [f"{each!r} {vars(each)}" for each in list(_chain(error))[1:]],
    "notes": lambda error: [getattr(each, "__notes__", ()) for each in _chain(error)],
    "pickle": pickle.dumps,
    "traceback": lambda error: "".join(traceback.format_exception(error)),
    "traceback with local variables": _locals,
}


class Printed(logging.Handler):
    """Keeps what is shown, by place. As a handler of logs, each record's text and its arguments."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: defaultdict[str, list[bytes]] = defaultdict(list)

    def keep(self, place: str, shown: Any) -> None:
        """Keep what was shown somewhere, as it is if it is bytes, else as text."""
        self.texts[place].append(shown if isinstance(shown, bytes) else str(shown).encode(errors="surrogatepass"))

    def _keep_all(self, kind: str, ways: dict[str, Callable[[Any], Any]], thing: Any) -> None:
        for way, show in ways.items():
            try:
                shown = show(thing)
            except (TypeError, AttributeError, ValueError, pickle.PicklingError) as refusal:
                shown = repr(refusal)
            self.keep(f"{kind}: {way}", shown)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.keep("application's log", self.format(record))
        self.keep("arguments of log records", f"{record.args!r} {record.msg!r}")

    def thing(self, thing: object) -> None:
        """Print an object that knows patients' values or keys."""
        self._keep_all("objects", OF_OBJECTS, thing)

    def key(self, thing: object) -> None:
        """Print an object that is made of keys."""
        self._keep_all("keys", OF_KEYS, thing)

    def error(self, error: BaseException) -> None:
        """Print an exception."""
        self._keep_all("errors", OF_ERRORS, error)

    def compiled(self, compiled: Compiled) -> None:
        """Print a statement as SQLAlchemy keeps it."""
        self.keep("compiled statements: text", compiled)
        self.keep("compiled statements: parameters", compiled.params)

    def cache(self, engine: Engine) -> None:
        """Print what an engine keeps of the statements that it executed."""
        for key, compiled in list(engine._compiled_cache.items()) if engine._compiled_cache else ():
            self.keep("engines' caches of statements", f"{key!r} {compiled} {compiled.params!r}")

    def notice(self, notice: psycopg.errors.Diagnostic) -> None:
        """Keep what the server tells the client beside its results."""
        self.keep("notices to the client", f"{notice.message_primary} {notice.message_detail} {notice.context}")

    def session(self, rows: Callable[[str], Any]) -> None:
        """Keep what a session of the server remembers, given a function of a query that returns its rows."""
        for place in ("pg_prepared_statements", "pg_cursors"):
            for row in rows(f"SELECT statement FROM {place}"):
                self.keep(place, row[0])  # a row's own repr would be shortened
