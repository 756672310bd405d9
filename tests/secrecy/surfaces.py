"""The places that secrets could reach, and how all that is written there is read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.secrecy.printing import Printed
from tests.secrecy.product import Product
from tests.secrecy.server import LOGS, SLOT, Server


@dataclass(frozen=True)
class Trial:
    """What has happened.

    Attributes:
        server: The server.
        product: The product, which has done its work.
        printed: What was shown.
        vault: Address of the key store.
    """

    server: Server
    product: Product
    printed: Printed
    vault: str


Leak = Callable[[Trial, str], None]
Lack = Callable[[Server], str | None]


@dataclass(frozen=True)
class Surface:
    """A way into some places.

    Attributes:
        way: How a secret would get there.
        places: Where it would be.
        leak: Lets a given secret go that way.
        lacks: Says what is missing on a server, where the way cannot exist.
    """

    way: str
    places: tuple[str, ...]
    leak: Leak
    lacks: Lack


_QUERIES: Final = {
    "pg_stat_statements": "SELECT query FROM pg_stat_statements",
    "pg_stats": "SELECT s::text FROM pg_stats s",
    "pg_indexes": "SELECT indexdef FROM pg_indexes",
    "pg_proc": "SELECT concat(prosrc, pg_get_function_sqlbody(oid)) FROM pg_proc",
    "pg_views": "SELECT definition FROM pg_views",
    "pg_attrdef": "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef",
    "pg_constraint": "SELECT pg_get_constraintdef(oid) FROM pg_constraint",
    "pg_description": "SELECT description FROM pg_description",
    "pg_db_role_setting": "SELECT s::text FROM pg_db_role_setting s",
    "encryption_keys": "SELECT t::text FROM encryption_keys t",
    "index_keys": "SELECT t::text FROM index_keys t",
    "key_rotations": "SELECT t::text FROM key_rotations t",
    "key_rotation_failures": "SELECT t::text FROM key_rotation_failures t",
    "logical decoding": f"SELECT data FROM pg_logical_slot_peek_changes('{SLOT}', NULL, NULL)",
}
_RELATIONS: Final = {"tables' files": "r", "TOAST tables' files": "t", "indexes' files": "i"}


def collected(trial: Trial, place: str) -> Iterable[bytes]:
    """Return all that is written in a place."""
    server, files = trial.server, _files(trial.server)
    if place in LOGS:
        log = (server.data / "log" / LOGS[place]).read_bytes()
        # The server breaks long lines of trees, and each log has its own sign for that.
        return [log.replace(b"\n\t", b" ").replace(b"\n", b" ").replace(b"\\n", b" ")]
    if place in files:
        return map(_contents, files[place])
    if place == "pg_waldump":
        segments = sorted(files["WAL"])
        command = [str(server.binaries / place), "-p", str(segments[0].parent), segments[0].name, segments[-1].name]
        return [subprocess.run(command, capture_output=True, check=False).stdout]
    if place == "the wire":
        return map(bytes, server.tap.streams)
    if place == "files that commands leave":
        return [each.read_bytes() for each in trial.product.workplace.rglob("*") if each.is_file()]
    now = [server.asked(_QUERIES[place])] if place in _QUERIES else []
    return [*now, *server.watch.seen[place], *trial.printed.texts[place]]


def _contents(file: Path) -> bytes:
    """Return what is in a file; nothing if it is gone by now, as caches of the server may be that it makes anew."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _files(server: Server) -> dict[str, list[Path]]:
    """Return the files of the data directory by place, all but the logs."""
    files: dict[str, list[Path]] = {}
    for place, kind in _RELATIONS.items():
        paths = f"SELECT pg_relation_filepath(oid) FROM pg_class WHERE relkind = '{kind}' AND relfilenode > 0"
        main = [server.data / path for path in server.asked(paths).decode().split()]
        files[place] = [each for path in main for each in path.parent.glob(f"{path.name}*")]
    files["WAL"] = [each for each in (server.data / "pg_wal").iterdir() if each.is_file()]
    files["pg_stat_statements' file"] = list((server.data / "pg_stat_tmp").glob("pgss_query_texts.stat"))
    named = {each for known in files.values() for each in known}
    rest = (each for each in server.data.rglob("*") if each.is_file() and each.parent.name != "log")
    files["other files of the server"] = [each for each in rest if each not in named]
    return files
