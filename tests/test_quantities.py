"""NaN and the infinities are refused wherever a number is asked for: by each option of a command, and each argument of the API."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import click
import pytest
from click.testing import CliRunner

import voiceassist_db
from voiceassist_db import AsyncDatabase, Database, create_async_engine, create_engine, keyring, rotation
from voiceassist_db.cli import cli
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.providers import vault
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.quantities import require_number
from voiceassist_db.rotation import Pace, retire

NOT_FINITE: Final = (math.nan, math.inf, -math.inf)
URL: Final = "postgresql://nobody@127.0.0.1:1/none"
UNUSED: Final[Any] = None


def commands() -> Iterator[click.Command]:
    """Yield every command."""
    context = click.Context(cli)
    yield rotate_command
    for name in cli.list_commands(context):
        known = cli.get_command(context, name)
        assert known is not None
        yield known


OPTIONS: Final = [
    pytest.param(each, option.opts[0], id=f"{each.name} {option.opts[0]}")
    for each in commands()
    for option in each.params
    if isinstance(option.type, click.types.FloatParamType)
]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "NaN", "1e999"])
def test_an_option_is_a_finite_number(command: click.Command, option: str, text: str) -> None:
    """It is wrong usage, before anything is asked of a server; a traceback tells nobody what was wrong."""
    done = CliRunner().invoke(command, [f"{option}={text}"], env={"DATABASE_URL": URL})
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Invalid value" in done.stderr
    assert "Traceback" not in done.stderr


def test_there_are_such_options() -> None:
    """They are found by their type."""
    assert len(OPTIONS) >= 4


ARGUMENTS: Final[dict[str, Callable[[float], object]]] = {
    "Pace.target_batch_s": lambda value: Pace(target_batch_s=value),
    "Pace.max_rows_per_second": lambda value: Pace(max_rows_per_second=value),
    "Pace.max_replica_lag_s": lambda value: Pace(max_replica_lag_s=value),
    "Pace.patience_s": lambda value: Pace(patience_s=value),
    "retire.grace_days": lambda value: retire(UNUSED, UNUSED, grace_days=value),
    "retire.patience_s": lambda value: retire(UNUSED, UNUSED, patience_s=value),
    "Database.ttl_s": lambda value: Database(create_engine(URL), UNUSED, ttl_s=value),
    "AsyncDatabase.ttl_s": lambda value: AsyncDatabase(create_async_engine(URL), UNUSED, ttl_s=value),
    "KeyringSource.ttl_s": lambda value: KeyringSource(UNUSED, ttl_s=value),
    "VaultKeyProvider.timeout_s": lambda value: VaultKeyProvider(
        "http://127.0.0.1:1", TokenLogin("t"), timeout_s=value
    ),
}
"""Calls with a number for each argument of the API that takes one."""


def asked_for() -> Iterator[str]:
    """Yield each argument of the API that is a float; reports are made, and not asked for."""
    for module in (voiceassist_db, rotation, vault, keyring):
        for name in importlib.import_module(module.__name__).__all__:
            known = getattr(module, name)
            is_asked = inspect.isfunction(known) or (inspect.isclass(known) and not issubclass(known, Exception))
            if not is_asked or name.endswith("Report"):
                continue
            for parameter in inspect.signature(known).parameters.values():
                if "float" in str(parameter.annotation):
                    yield f"{name}.{parameter.name}"


def test_every_argument_is_tried() -> None:
    """An argument that is added is added to the test."""
    assert set(asked_for()) == set(ARGUMENTS)


@pytest.mark.parametrize("value", [*NOT_FINITE, -1.0])
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_argument_is_a_finite_number(argument: str, value: float) -> None:
    """The error names the argument, and comes before anything is asked of a server."""
    with pytest.raises(ValueError, match=f"{argument.partition('.')[2]} must be a finite number"):
        ARGUMENTS[argument](value)


@pytest.mark.parametrize(
    ("value", "options", "limits"),
    [
        (0.0, {"is_open": True}, "of more than 0"),
        (-0.1, {}, "of at least 0"),
        (7.5, {"most": 7}, "from 0 to 7"),
        (math.nan, {"most": 7}, "from 0 to 7"),
    ],
)
def test_the_message_has_the_range(value: float, options: dict[str, Any], limits: str) -> None:
    """So that the next call fits."""
    with pytest.raises(ValueError, match=f"it must be a finite number {limits}$"):
        require_number("it", value, **options)


def test_numbers_in_range_pass() -> None:
    """Up to both ends of the range."""
    for value in (0, 0.0, 1e-300, 7, 1e308):
        require_number("it", value)
    require_number("it", 7, most=7)
    require_number("it", 1e-300, is_open=True)
