"""What must hold of a connection before a key may pass through it, and how to fix what does not.

A bind parameter is not a secret place: a server can log it, and a wire without TLS shows it. Owns the rules, which
``engine`` applies to each connection, ``provisioning`` brings about and ``checking`` reports. Decides nothing itself.
"""

from voiceassist_db.safety.finding import Finding, described, quoted
from voiceassist_db.safety.schemas import (
    DISTRIBUTED,
    LEFTOVERS,
    NOT_OWN,
    NOT_OWN_SCHEMAS,
    NOT_TRUSTED,
    SCHEMAS,
    SUSPECT,
    unsafe_schemas,
)
from voiceassist_db.safety.session import SESSION, Driver, Session, is_pooled, schemas_named, unsafe_names
from voiceassist_db.safety.settings import FIXED, SETTINGS, unsafe_settings
from voiceassist_db.safety.transport import UNPROVEN, is_unproven, proof, proving, unsafe_hop, unsafe_transport

__all__ = [
    "DISTRIBUTED",
    "FIXED",
    "LEFTOVERS",
    "NOT_OWN",
    "NOT_OWN_SCHEMAS",
    "NOT_TRUSTED",
    "SCHEMAS",
    "SESSION",
    "SETTINGS",
    "SUSPECT",
    "UNPROVEN",
    "Driver",
    "Finding",
    "Session",
    "described",
    "is_pooled",
    "is_unproven",
    "proof",
    "proving",
    "quoted",
    "schemas_named",
    "unsafe_hop",
    "unsafe_names",
    "unsafe_schemas",
    "unsafe_settings",
    "unsafe_transport",
]
