"""The work of ``rotate`` and ``retire``, for one database or for several on one secret.

Owns the exit codes and the order of the steps. The commands own their options.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from voiceassist_db.cli.attending import attended, say_skipped
from voiceassist_db.cli.databases import Databases, Target
from voiceassist_db.cli.fleet import Result, deliver
from voiceassist_db.cli.output import progress, say, say_error
from voiceassist_db.cli.prospects import COMPLETE, Look, Mode, lacking, mode_of, need, survey, unlisted
from voiceassist_db.cli.rotation_words import show_index_report, show_leftovers, show_plan, show_report, show_retirement
from voiceassist_db.cli.stopping import stopping
from voiceassist_db.errors import NothingToDoError, RotationActiveError, RotationError, VoiceAssistDBError

if TYPE_CHECKING:
    from voiceassist_db.database import Database
    from voiceassist_db.keys import KeyProvider
    from voiceassist_db.rotation import IndexRotationReport, Pace, Progress, RotationReport

EXIT_REFUSED: Final = 1
EXIT_LEFT_OVER: Final = 3
EXIT_QUARANTINED: Final = 4
EXIT_ACTIVE: Final = 5
EXIT_INTERRUPTED: Final = 6

POOL_OVER_WORKERS: Final = 3
"""Connections beside the workers': heartbeat, probes, and the run itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the options ask for, beside the databases."""

    pace: Pace
    tables: list[str] | None = None
    resume_only: bool = False
    index_key: bool = False
    dry_run: bool = False
    grace_days: float | None = None
    """Of a retirement, which is then asked for."""

    @property
    def ends_a_key(self) -> bool:
        """Whether a key may leave the secret."""
        return self.grace_days is not None or self.index_key


def carry_out(databases: Databases, asked: Asked, *, as_json: bool) -> None:
    """Do what is asked for in each database, and print the results.

    Ends the process with the exit code of the result, where that is not 0.

    Raises:
        VoiceAssistDBError: Only one database was asked for, and it failed.
    """
    from voiceassist_db import config

    targets, options = databases.targets(), config.engine_options()
    places = _Places(options | {"pool_size": asked.pace.workers + POOL_OVER_WORKERS}, config.key_provider())
    try:
        if not targets[0].name:
            deliver(targets, lambda target: _or_nothing(lambda: _worked(places, target, asked)), as_json=as_json)
        else:
            _rotate_all(places, targets, asked, as_json=as_json)
    except RotationActiveError as active:
        say_error(active)
        sys.exit(EXIT_ACTIVE)


@dataclass(frozen=True, slots=True)
class _Places:
    """Opens databases, all with one key store."""

    options: dict[str, Any]
    provider: KeyProvider

    @contextmanager
    def opened(self, target: Target) -> Iterator[Database]:
        from voiceassist_db.database import Database
        from voiceassist_db.engine import create_engine

        with Database(create_engine(target.url, **self.options), self.provider) as database, attended(database.engine):
            yield database


def _rotate_all(places: _Places, targets: Sequence[Target], asked: Asked, *, as_json: bool) -> None:
    """Rotate several databases to one new key, or end the older one in all of them."""
    with nullcontext(threading.Event()) if asked.dry_run else stopping() as stop:
        looks = survey(targets, lambda target: _look(places, target, asked), is_stopping=stop.is_set)
        fleet = _Fleet(asked, stop, looks, _mode(places.provider, asked, looks), _held(places.provider, asked, looks))
        deliver(targets, lambda target: fleet.work(places, target), as_json=as_json, code_of=_code_of)


def _look(places: _Places, target: Target, asked: Asked) -> Look:
    from voiceassist_db.execution import translated
    from voiceassist_db.keyring import Here
    from voiceassist_db.rotation import next_action

    with places.opened(target) as database:
        if asked.dry_run:
            with translated(), database.engine.connect() as connection:
                here = Here.of(connection)
        else:
            here = Here.known(database.engine)
        try:
            return Look(here, next_action(database.engine, database.keys))
        except VoiceAssistDBError as error:
            return Look(here, error)


def _mode(provider: KeyProvider, asked: Asked, looks: Mapping[str, Look]) -> Mode:
    if asked.resume_only or asked.grace_days is not None:
        return Mode.BEGIN  # which makes no key
    if not asked.index_key:
        return mode_of(look.prospect for look in looks.values())
    try:  # the secret alone tells whether a rotation of the index key is unfinished
        return Mode.FINISH if provider.fetch().previous_index_key is not None else Mode.BEGIN
    except VoiceAssistDBError:
        return Mode.BEGIN  # every database will tell why


def _held(provider: KeyProvider, asked: Asked, looks: Mapping[str, Look]) -> VoiceAssistDBError | None:
    """Add all databases to the list of the secret; return why none may be changed, where a key could leave it too early."""
    from voiceassist_db.keyring.listing import enlist

    if asked.dry_run:
        return None
    try:
        listed = enlist(provider, [look.here for look in looks.values() if look.here is not None and look.uses_secret])
    except VoiceAssistDBError as error:
        return error
    if listed is None or not asked.ends_a_key or not (names := unlisted(looks, listed)):
        return None
    return RotationError(
        f"the secret does not list {', '.join(names)}, so a key could leave it that is needed there. Nothing was changed. Run `voiceassist-db "
        "init-keys` there first. Leave a database out of the list if it does not use this secret"
    )


@dataclass(frozen=True, slots=True)
class _Fleet:
    """A rotation of several databases.

    Attributes:
        asked: What the options ask for.
        stop: When it is set, no further database is begun.
        looks: What is known of each.
        mode: What all may do.
        held: Why none may be changed; None where they may.
    """

    asked: Asked
    stop: threading.Event
    looks: Mapping[str, Look]
    mode: Mode
    held: VoiceAssistDBError | None

    def work(self, places: _Places, target: Target) -> Result:
        """Rotate one of them, unless that is known to fail."""
        look = self.looks.get(target.name)
        if look is not None and isinstance(look.prospect, VoiceAssistDBError):
            raise look.prospect
        if self.stop.is_set():
            return _not_begun()
        if self.held is not None:
            raise self.held
        if self.mode is Mode.BEGIN:
            return _or_nothing(lambda: _worked(places, target, self.asked, self.stop))
        try:
            return _worked(places, target, dataclasses.replace(self.asked, resume_only=True), self.stop)
        except NothingToDoError:
            pass
        if self.mode is Mode.HOLD:
            raise RotationError(
                f"no new key was made, because {need(lacking(self.looks))} a key that the secret does not hold: follow the message of "
                "that database first, or leave it out"
            )
        return _nothing(COMPLETE)


def _not_begun() -> Result:
    told = "not begun, because the command was interrupted: run it again"
    return Result({"not_begun": told}, lambda: say(told), EXIT_INTERRUPTED)


def _nothing(told: str) -> Result:
    return Result({"nothing_to_do": told}, lambda: say(told))


def _or_nothing(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except NothingToDoError as nothing:
        return _nothing(str(nothing))


def _worked(places: _Places, target: Target, asked: Asked, stop: threading.Event | None = None) -> Result:
    """Rotate one database, retire its older key, or show the plan for it.

    Args:
        places: Opens it.
        target: The database.
        asked: What the options ask for.
        stop: When it is set, the run ends; None: a signal ends it.

    Raises:
        NothingToDoError: There is nothing to do.
    """
    from voiceassist_db.rotation import plan, retire, rotate, rotate_index_key

    with places.opened(target) as database:
        engine, keys = database.engine, database.keys
        say_skipped(engine)
        if asked.dry_run:
            would = plan(engine, keys, tables=asked.tables, pace=asked.pace, resume_only=asked.resume_only)
            return Result(dataclasses.asdict(would), lambda: show_plan(would))
        if stop is not None and stop.is_set():
            return _not_begun()
        if asked.grace_days is not None:
            done = retire(engine, keys, grace_days=asked.grace_days)
            return Result(dataclasses.asdict(done), lambda: show_retirement(done))
        with nullcontext(stop) if stop is not None else stopping() as ending, _showing() as show:
            if asked.index_key:
                renewed = rotate_index_key(
                    engine, keys, pace=asked.pace, resume_only=asked.resume_only, stop=ending, on_progress=show
                )
                return _reported(renewed, lambda: show_index_report(renewed))
            rotated = rotate(
                engine,
                keys,
                pace=asked.pace,
                tables=asked.tables,
                resume_only=asked.resume_only,
                stop=ending,
                on_progress=show,
            )
            return _reported(rotated, lambda: show_report(rotated))


def _reported(report: RotationReport | IndexRotationReport, show_result: Callable[[], None]) -> Result:
    def show() -> None:
        show_result()
        show_leftovers(report)

    return Result(
        dataclasses.asdict(report) | {"rows_per_second": round(report.rows_per_second, 1)}, show, exit_code(report)
    )


def _code_of(error: VoiceAssistDBError) -> int:
    return EXIT_ACTIVE if isinstance(error, RotationActiveError) else EXIT_REFUSED


def exit_code(report: RotationReport | IndexRotationReport) -> int:
    """Return the exit code that tells a run's result."""
    if report.done:
        return 0
    if report.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_QUARANTINED if report.done_but_quarantined else EXIT_LEFT_OVER


@contextmanager
def _showing() -> Iterator[Callable[[Progress], None]]:
    with progress("rotating") as report:
        yield lambda now: report(now.rows, now.total, ": ".join(part for part in (now.phase, now.note) if part))
