"""``scripts/rotate_keys.py``."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from voiceassist_db.cli.attending import attended, say_skipped
from voiceassist_db.cli.databases import Databases, Target, databases_option
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.fleet import Result, deliver
from voiceassist_db.cli.numbers import Number
from voiceassist_db.cli.output import json_option, progress, say, say_error
from voiceassist_db.cli.prospects import COMPLETE, Look, Mode, lacking, mode_of, survey, unlisted
from voiceassist_db.cli.rotation_words import show_index_report, show_leftovers, show_plan, show_report, show_retirement
from voiceassist_db.cli.stopping import stopping
from voiceassist_db.errors import NothingToDoError, RotationActiveError, RotationError, VoiceAssistDBError

if TYPE_CHECKING:
    from voiceassist_db.database import Database
    from voiceassist_db.keys import KeyProvider
    from voiceassist_db.rotation import IndexRotationReport, Pace, Progress, RotationReport

TARGET_BATCH_S: Final = 0.5
GRACE_DAYS: Final = 21
MAX_GRACE_DAYS: Final = 36_500

EXIT_REFUSED: Final = 1
EXIT_LEFT_OVER: Final = 3
EXIT_QUARANTINED: Final = 4
EXIT_ACTIVE: Final = 5
EXIT_INTERRUPTED: Final = 6

POOL_OVER_WORKERS: Final = 3
"""Connections beside the workers': heartbeat, probes, and the run itself."""


@click.command(
    "rotate_keys",
    cls=Command,
    exit_codes={
        0: "done and verified (--dry-run: it could begin)",
        EXIT_REFUSED: "refused or failed, and why",
        2: "wrong usage",
        EXIT_LEFT_OVER: "rows are left under the old key, or not every value could be verified: run it again, see `verify`",
        EXIT_QUARANTINED: "done, but for rows that could not be read or were refused: `status` counts them, key_rotation_failures names them",
        EXIT_ACTIVE: "another run is active",
        EXIT_INTERRUPTED: "interrupted; run it again to go on",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--dry-run", is_flag=True, help="Check everything and show the plan; change nothing.")
@click.option(
    "--resume", "resume_only", is_flag=True, help="Only finish an unfinished rotation, which is also done without it."
)
@click.option("--tables", metavar="A,B", help="Only these tables, for now.  [default: all]")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Connections that re-encrypt in parallel.",
)
@click.option(
    "--target-batch-seconds",
    type=Number(min=0.01, max=60),
    default=TARGET_BATCH_S,
    show_default=True,
    help="How long a batch, whose rows are locked, should take.",
)
@click.option(
    "--max-rows-per-second",
    type=Number(min=0, min_open=True),
    help="Re-encrypted, and then verified, by all workers.  [default: no limit]",
)
@click.option(
    "--max-replica-lag",
    type=Number(min=0, min_open=True),
    metavar="SECONDS",
    help="Pause while any replica is this far behind, or its lag cannot be read.  [default: not watched]",
)
@click.option(
    "--index-key", "index_key", is_flag=True, help="Rotate the blind-index key instead of the encryption key."
)
@click.option(
    "--retire", "retires", is_flag=True, help="Instead: end the previous key version, which no row may need any more."
)
@click.option(
    "--grace-days",
    type=Number(min=0, max=MAX_GRACE_DAYS),
    default=GRACE_DAYS,
    show_default=True,
    help="With --retire: days since the end of the rotation that must have passed, by the server's clock, for the backups of that "
    "time.",
)
@databases_option
@json_option
def command(  # noqa: PLR0917  # click passes them by name
    databases: Databases,
    dry_run: bool,
    resume_only: bool,
    tables: str | None,
    workers: int,
    target_batch_seconds: float,
    max_rows_per_second: float | None,
    max_replica_lag: float | None,
    index_key: bool,
    retires: bool,
    grace_days: float,
    as_json: bool,
) -> None:
    """Rotate the encryption key: a new one in Vault, and every encrypted row of every table re-encrypted under it.

    Readers and writers go on meanwhile. An unfinished rotation is continued, whatever ended it. Ctrl-C and SIGTERM end it
    after the batches that are under way. The database is named by DATABASE_URL, the keys by VAULT_ADDR and its login.

    Several databases on one secret are rotated to one new key, one after the other. A database that fails stops no other one: run
    the same command again. The exit code is then the worst one of all, in the order 1, 6, 5, 3, 4, 0.
    """
    from voiceassist_db import config
    from voiceassist_db.rotation import Pace

    pace = Pace(
        workers=workers,
        target_batch_s=target_batch_seconds,
        max_rows_per_second=max_rows_per_second,
        max_replica_lag_s=max_replica_lag,
    )
    _require_fitting(retires=retires, index_key=index_key, dry_run=dry_run, tables=tables, resume_only=resume_only)
    asked = _Asked(
        pace=pace,
        tables=tables.split(",") if tables else None,
        resume_only=resume_only,
        index_key=index_key,
        dry_run=dry_run,
        grace_days=grace_days if retires else None,
    )
    targets, options = databases.targets(), config.engine_options()
    places = _Places(options | {"pool_size": workers + POOL_OVER_WORKERS}, config.key_provider())
    try:
        if not targets[0].name:
            deliver(targets, lambda target: _or_nothing(lambda: _worked(places, target, asked)), as_json=as_json)
        else:
            _rotate_all(places, targets, asked, as_json=as_json)
    except RotationActiveError as active:
        say_error(active)
        sys.exit(EXIT_ACTIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the options ask for, beside the databases."""

    pace: Pace
    tables: list[str] | None
    resume_only: bool
    index_key: bool
    dry_run: bool
    grace_days: float | None = None
    """With ``--retire`` only."""

    @property
    def ends_a_key(self) -> bool:
        """Whether a key may leave the secret."""
        return self.grace_days is not None or self.index_key


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


def _rotate_all(places: _Places, targets: Sequence[Target], asked: _Asked, *, as_json: bool) -> None:
    """Rotate several databases to one new key, or end the older one in all of them."""
    with nullcontext(threading.Event()) if asked.dry_run else stopping() as stop:
        looks = survey(targets, lambda target: _look(places, target, asked), is_stopping=stop.is_set)
        fleet = _Fleet(asked, stop, looks, _mode(places.provider, asked, looks), _held(places.provider, asked, looks))
        deliver(targets, lambda target: fleet.work(places, target), as_json=as_json, code_of=_code_of)


def _look(places: _Places, target: Target, asked: _Asked) -> Look:
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


def _mode(provider: KeyProvider, asked: _Asked, looks: Mapping[str, Look]) -> Mode:
    if asked.resume_only or asked.grace_days is not None:
        return Mode.BEGIN  # which makes no key
    if not asked.index_key:
        return mode_of(look.prospect for look in looks.values())
    try:  # the secret alone tells whether a rotation of the index key is unfinished
        return Mode.FINISH if provider.fetch().previous_index_key is not None else Mode.BEGIN
    except VoiceAssistDBError:
        return Mode.BEGIN  # every database will tell why


def _held(provider: KeyProvider, asked: _Asked, looks: Mapping[str, Look]) -> VoiceAssistDBError | None:
    """Add all databases to the list of the secret; return why none may be changed, where a key could leave it too early."""
    from voiceassist_db.keyring.members import enlist

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

    asked: _Asked
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
                f"no new key was made, because {', '.join(lacking(self.looks))} needs a key that the secret does not hold: follow its "
                "message first, or leave it out"
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


def _worked(places: _Places, target: Target, asked: _Asked, stop: threading.Event | None = None) -> Result:
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


def _require_fitting(*, retires: bool, index_key: bool, dry_run: bool, tables: str | None, resume_only: bool) -> None:
    """Refuse options that would be passed over in silence."""
    if retires and (index_key or dry_run or tables or resume_only):
        raise click.UsageError("--retire goes with --grace-days and --json only")
    if index_key and (dry_run or tables):
        raise click.UsageError("--index-key rotates all tables at once, and has no --dry-run")


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
