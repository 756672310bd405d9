"""The common tools that print what a program holds: each returns all that it would show of an object."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import json
import logging
import pickle
import pprint
import reprlib
import traceback
from collections.abc import Callable
from typing import Any, Final

import rich
import rich.console
import rich.pretty
import rich.traceback
import sentry_sdk
from _pytest._io.saferepr import saferepr
from sentry_sdk.transport import Transport

from voiceassist_db.errors import FieldNotLoadedError

REFUSALS: Final = (TypeError, AttributeError, ValueError, pickle.PicklingError, FieldNotLoadedError)
"""What an object refuses to be printed with."""


def _console() -> rich.console.Console:
    return rich.console.Console(file=io.StringIO(), width=10_000)


def _printed(console: rich.console.Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _inspected(thing: object, *, of_all: bool = False) -> str:
    console = _console()
    rich.inspect(thing, console=console, all=of_all)
    return _printed(console)


def _logged(thing: object) -> str:
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s %r", (thing, thing), None)
    return f"{record.getMessage()} {record.args!r}"


def _attributes(thing: object) -> str:
    """As debuggers and completion show them."""
    return repr({name: getattr(thing, name, None) for name in dir(thing)})


def _fail(thing: object) -> None:
    held, among, by_name = thing, [thing], {"thing": thing}
    raise RuntimeError(len([held, among, by_name]))


def _error(thing: object) -> RuntimeError:
    try:
        _fail(thing)
    except RuntimeError as error:
        return error
    raise AssertionError


def rich_traceback(error: BaseException) -> str:
    """Return what rich prints of an error, with local variables."""
    console = _console()
    options: dict[str, Any] = {"show_locals": True, "locals_max_length": 100, "locals_max_string": 10_000}
    console.print(
        rich.traceback.Traceback.from_exception(type(error), error, error.__traceback__, width=10_000, **options)
    )
    return _printed(console)


def plain_traceback(error: BaseException) -> str:
    """Return what Python prints of an error, with local variables."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


class _Kept(Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.sent.append(envelope.serialize().decode())


def sent_to_sentry(error: BaseException) -> str:
    """Return what Sentry's client would send of an error, with local variables."""
    kept = _Kept()
    options: dict[str, Any] = {
        "default_integrations": False,
        "include_local_variables": True,
        "max_value_length": 100_000,
        "transport": kept,
    }
    client = sentry_sdk.Client(dsn="http://key@127.0.0.1:1/1", **options)
    with sentry_sdk.new_scope() as scope:
        scope.set_client(client)
        sentry_sdk.capture_exception(error)
    client.close(timeout=0)
    assert kept.sent
    return "\n".join(kept.sent)


def _shortened(thing: object) -> str:
    short = reprlib.Repr()
    short.maxother = short.maxstring = 10_000
    return short.repr(thing)


def _json(thing: object) -> str:
    return json.dumps(thing, default=lambda each: getattr(each, "__dict__", str(each)), skipkeys=True)


TOOLS: Final[dict[str, Callable[[Any], object]]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "format to a width": lambda thing: f"{thing!s:>80}",
    "in containers": lambda thing: f"{[thing]} {(thing,)} { ({'thing': thing}) }",
    "reprlib": _shortened,
    "pprint": lambda thing: pprint.pformat([thing, {"thing": thing}]),
    "vars": vars,
    "dir and getattr": _attributes,
    "inspect.getmembers": inspect.getmembers,
    "dataclasses.asdict": dataclasses.asdict,
    "dataclasses.astuple": dataclasses.astuple,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "the first pickle": lambda thing: pickle.dumps(thing, 0),
    "the state": lambda thing: thing.__getstate__(),
    "JSON": _json,
    "logging": _logged,
    "traceback with local variables": lambda thing: plain_traceback(_error(thing)),
    "rich's repr": lambda thing: rich.pretty.pretty_repr([thing, {"thing": thing}]),
    "rich.inspect": _inspected,
    "rich.inspect of all": lambda thing: _inspected(thing, of_all=True),
    "rich's traceback": lambda thing: rich_traceback(_error(thing)),
    "pytest's repr": lambda thing: saferepr([thing], maxsize=None),
    "Sentry": lambda thing: sent_to_sentry(_error(thing)),
}
"""By name."""

TAKES_ALL: Final = frozenset({"dataclasses.asdict", "dataclasses.astuple", "pickle", "the first pickle", "the state"})
"""Those that hand over a record as a whole: whoever calls them asks for the values."""


def shown(tool: str, thing: object) -> str:
    """Return what a tool shows of an object; a refusal, where it is refused."""
    try:
        result = TOOLS[tool](thing)
    except REFUSALS as refusal:
        return f"refused: {refusal} {refusal.__context__!r}"
    # The first pickle is Latin-1, all later ones are UTF-8.
    return f"{result.decode(errors='replace')} {result.decode('latin-1')}" if isinstance(result, bytes) else str(result)
