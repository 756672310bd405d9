"""The server's settings under which no parameter of a statement leaves the server's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from voiceassist_db.safety.finding import Finding, quoted

if TYPE_CHECKING:
    from voiceassist_db.safety.session import Session

SETTINGS: Final[Mapping[str, str]] = {
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": "0",
    "auto_explain.log_min_duration": "-1",
    "auto_explain.log_parameter_max_length": "0",
    "pgaudit.log_parameter": "off",
}
"""The only value of each setting under which no parameter reaches a log or a file. A custom plan has parameters folded into it
as constants, which auto_explain and debug_print_plan print: hence plan_cache_mode. A parallel plan copies parameters into
dynamic shared memory for its workers, which is a file in the data directory where dynamic_shared_memory_type is mmap."""

FIXED: Final = frozenset({"user", "database user", "database", "global", "client", "command line"})
"""Sources of a setting (``pg_settings.source``) that cannot change during a session. A value of the configuration file can change
under it, and one that was SET belongs to the next client behind a pooler."""

_RISKS: Final = {
    "max_parallel_workers_per_gather": "a parallel plan can write parameters to a file in the data directory",
}
_RISK: Final = "parameters can reach the server's log"

_SOURCES: Final = {
    "configuration file": "the configuration file, which can change it under this connection",
    "default": "default only, which the configuration file can change under this connection",
    "session": "a SET of this session, which a pooler carries to others",
}


def unsafe_settings(session: Session) -> list[Finding]:
    """Return what is wrong with the server's settings for this role."""
    findings = []
    for name, safe in SETTINGS.items():
        if name in session.settings:
            value, source = session.settings[name]
        elif "." in name:  # of a module that is not loaded
            continue
        else:
            value, source = "not there", "default"
        if value != safe:
            problem = f"is {value}, so that {_RISKS.get(name, _RISK)}"
        elif source not in FIXED:
            problem = f"is {value}, but by {_SOURCES.get(source, source)}"
        else:
            continue
        where = f" IN DATABASE {quoted(session.database)}" if source == "database user" else ""
        remedy = f"ALTER ROLE {quoted(session.role)}{where} SET {name} = {safe};"
        if source == "client":
            remedy = "Take it out of the connection's options (DATABASE_URL, PGOPTIONS)."
        findings.append(Finding(name, problem, remedy))
    return findings
